# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`servers list`, `import`, `export` and `trust`: the stored list of servers, and whose servers they are."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from psiphon_vpn import client
from psiphon_vpn.cli.config_edit import need_root, say
from psiphon_vpn.cli.config_place import read_settings
from psiphon_vpn.errors import EXIT_FAILURE, DaemonDownError, UserError
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.next_step import Need, advise, need_set_up

if TYPE_CHECKING:
    from psiphon_vpn.servers.profile import Profile
    from psiphon_vpn.servers.record import ListRecord
    from psiphon_vpn.servers.store import ListChange
    from psiphon_vpn.servers.trusting import Foreign

_MIB: Final = 1 << 20


@click.command(
    "list",
    help=_("Show how many servers the stored list has, by country and protocol, and its age."),
    short_help=_("Show how many servers the list has, and its age."),
)
@click.option("--json", "as_json", is_flag=True, help=_("For programs."))
def list_(*, as_json: bool) -> int:
    """Show the records; the list itself is verified before each start of the tunnel core."""
    from psiphon_vpn.servers.profile import list_profiles
    from psiphon_vpn.servers.store import ServerStore

    layout = Layout()
    store, chosen = ServerStore(layout), read_settings().servers
    current, previous = store.read_current(), store.read_previous()
    names = list_profiles(layout)
    if as_json:
        shown = {
            "profile": chosen,
            "profiles": list(names),
            "list": None if current is None else _describe_json(current),
            "previous": None if previous is None else _describe_json(previous),
        }
        click.echo(json.dumps(shown, indent=2))
        return 0
    click.echo(_("Servers of:   {profile}").format(profile=chosen))
    if len(names) > 1:
        click.echo(_("Trusted:      {names}").format(names=", ".join(names)))
    if current is None:
        click.echo(_("List:         none"))
        say(advise(Need.SERVERS, layout).sentence)
        return 0
    for line in _describe(current):
        click.echo(line)
    if current.signed and current.profile != chosen:
        text = _("Note:         it is of {profile}, so it is not used.").format(profile=current.profile)
        click.echo(click.style(text, fg="yellow"))
    if previous is not None:
        click.echo(_("Before it:    {list}").format(list=_name(previous)))
    return 0


def _describe_json(record: ListRecord) -> dict[str, object]:
    return {name: value for name, value in asdict(record).items() if name != "seen"}


def _count(count: int) -> str:
    return ngettext("{count} server", "{count} servers", count).format(count=count)


def _name(record: ListRecord) -> str:
    from psiphon_vpn.local_time import show_moment

    return _("{servers}, received {date}").format(servers=_count(record.entries), date=show_moment(record.fetched_at))


def _describe(record: ListRecord) -> Iterator[str]:
    from psiphon_vpn.local_time import show_moment

    yield _("List:         {servers}").format(servers=_count(record.entries))
    yield _("Countries:    {regions}").format(regions=_render_counts(record.by_region))
    yield _("Protocols:    {protocols}").format(protocols=_render_counts(record.by_protocol))
    yield _("Received:     {date}").format(date=show_moment(record.fetched_at))
    yield _("From:         {source}").format(source=client.clean_text(record.source))
    if record.signed:
        yield _("Signed:       yes, with the key of {profile}").format(profile=record.profile)
    else:
        yield click.style(_("Signed:       no"), fg="yellow")


def _render_counts(counts: object) -> str:
    assert isinstance(counts, dict)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered) or _("not known")


@click.command(
    "import",
    help=_("Store a signed server list, from a file or from '-', after it was verified."),
    short_help=_("Verify a signed server list, and store it."),
)
@click.argument("file", metavar="FILE|-")
@click.option("--unsigned", is_flag=True, help=_("Store server entries that nobody has signed; asks first."))
@click.option("--smaller", is_flag=True, help=_("Also a list with far fewer servers than the one in use."))
@click.option("--older", is_flag=True, help=_("Also a list that was in use before."))
@click.option("--yes", is_flag=True, help=_("Do not ask."))
@click.pass_obj
def import_(runtime_dir: Path, *, file: str, unsigned: bool, smaller: bool, older: bool, yes: bool) -> int:
    """Store a list, or say what else the file is."""
    need_root("servers import")
    need_set_up(runtime_dir, _("The server list is not stored"))
    from psiphon_vpn.servers.bundle_format import MAX_BUNDLE
    from psiphon_vpn.servers.errors import QUESTIONS, ListError, ListFlaw
    from psiphon_vpn.servers.given_file import STDIN, read_given
    from psiphon_vpn.servers.isolated import read_bare_entries, read_signed_list
    from psiphon_vpn.servers.store import ServerStore

    layout = Layout()
    content = read_given(file, high=MAX_BUNDLE)
    source = _("standard input") if file == STDIN else os.path.abspath(file)
    profile = _find_profile(layout)
    if unsigned:
        verified, profile = read_bare_entries(content), None
        count = _count(verified.summary.entries)
        text = _("{servers} that nobody has signed: whoever made this file can see that you connect, and where to.")
        click.echo(text.format(servers=count), err=True)
        if not _confirm(_("Use them?"), yes=yes):
            return _unchanged()
    else:
        if profile is None:
            raise UserError(
                _("The server list is not used"),
                _('the configuration says servers = "none"'),
                _("Choose whose servers to use: sudo psiphon-vpn config set servers=psiphon"),
            )
        content = _find_in_bundle(content)
        try:
            verified = read_signed_list(content, profile)
        except ListError as error:
            if error.flaw is ListFlaw.NOT_A_LIST and (code := _explain_foreign(content, profile)) is not None:
                return code
            raise
    store = ServerStore(layout)
    while True:
        try:
            change = store.put(
                verified, content, source=source, profile=profile, allow_smaller=smaller, allow_seen=older
            )
        except ListError as error:
            # With --yes nobody is there to decide: then only the options do.
            if error.flaw not in QUESTIONS or yes or not sys.stdin.isatty() or file == STDIN:
                raise
            click.echo(_("Look at this list: {why}.").format(why=error.why), err=True)
            if not _confirm(_("Use it all the same?"), yes=False):
                return _unchanged()
            smaller, older = smaller or error.flaw is ListFlaw.MUCH_SMALLER, older or error.flaw is ListFlaw.SEEN_BEFORE
            continue
        return _finish(change, runtime_dir)


def _find_in_bundle(content: bytes) -> bytes:
    """The list in a bundle; what is none stays as it is. The core in it is for `setup --bundle`."""
    from psiphon_vpn.servers.bundle import read_bundle
    from psiphon_vpn.servers.bundle_format import looks_like_bundle

    if not looks_like_bundle(content):
        return content
    found = read_bundle(content).server_list
    if found is None:
        raise UserError(
            _("The server list is not used"),
            _("the bundle has no server list in it"),
            _("Its tunnel program is installed with: sudo psiphon-vpn setup --bundle FILE"),
        )
    return found


def _find_profile(layout: Layout) -> Profile | None:
    from psiphon_vpn.servers.profile import NONE, load_profile

    name = read_settings().servers
    return None if name == NONE else load_profile(name, layout)


def _finish(change: ListChange, runtime_dir: Path) -> int:
    """Say what is in use, and have the daemon use it at once if it looks for servers."""
    for line in _describe(change.new):
        click.echo(line)
    if not change.changed:
        click.echo(_("This list was in use already; nothing else changed."))
        return 0
    click.echo(click.style(_("The list is stored."), fg="green", bold=True))
    try:
        status = client.request_status(runtime_dir)
        if not Layout().core_record.exists() and Path(runtime_dir) == Layout().runtime_dir:
            text = _(
                "There is no tunnel program to use it. Bring a file that has it: sudo psiphon-vpn setup --bundle FILE"
            )
            click.echo(text)
        elif status.get("state") == "OPEN":
            click.echo(_("The open tunnel stays as it is; the next connection uses the list."))
        elif status.get("intent") == "connected":
            client.send_command(runtime_dir, "restart")
            click.echo(_("The service connects with it now; the machine stays locked until its tunnel is checked."))
        else:
            click.echo(_("It is used when you connect: sudo psiphon-vpn start"))
    except DaemonDownError as error:
        click.echo(_("It is used as soon as the service runs.") + " " + error.next_step)
    return 0


def _confirm(question: str, *, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UserError(
            _("Nothing was changed"), _("it cannot ask without a terminal"), _("Run it in a terminal, or with --yes.")
        )
    return click.confirm(question, default=False, err=True)


def _unchanged() -> int:
    click.echo(_("Nothing was changed."))
    return EXIT_FAILURE


def _explain_foreign(content: bytes, ours: Profile) -> int | None:
    """Say what is in another program's configuration, and what of that is ours already; None if it is none."""
    from psiphon_vpn.servers import foreign
    from psiphon_vpn.servers.trusting import is_same_network, make_of, read_foreign

    found = read_foreign(content)
    if found.kind == foreign.UNKNOWN:
        return None
    for line in _describe_foreign(found, ours):
        click.echo(line)
    try:
        profile = make_of(found, name="custom", source="")
    except UserError:
        profile = None
    if profile is not None and not is_same_network(profile, ours):
        click.echo(_("Its key is another than that of {profile}. If you trust it:").format(profile=ours.name))
        click.echo(_("  sudo psiphon-vpn servers trust FILE"))
        return EXIT_FAILURE
    click.echo(_("Nothing of it has to be imported: this machine trusts the same network. For its list of servers:"))
    click.echo(_("  sudo psiphon-vpn servers refresh"))
    return 0


def _describe_foreign(found: Foreign, ours: Profile) -> Iterator[str]:
    yield _("This is no server list but the configuration of a Psiphon program. In it:")
    same = {
        "list_urls": {url.url.replace("psiphon//", "psiphon/") for url in ours.list_urls},
        "osl_urls": set(ours.osl_urls),
        "signature_key": {ours.signature_key},
        "entry_signature_key": {ours.entry_signature_key},
        "propagation_channel_id": {ours.propagation_channel_id},
        "sponsor_id": {ours.sponsor_id},
    }
    names = {
        "list_urls": _("addresses of server lists"),
        "osl_urls": _("addresses of obfuscated server lists"),
        "signature_key": _("key of server lists"),
        "entry_signature_key": _("key of server entries"),
        "propagation_channel_id": _("propagation channel"),
        "sponsor_id": _("sponsor"),
    }
    for name, text in names.items():
        value = found.values.get(name)
        if value is None:
            continue
        values = {one.replace("com//", "com/") for one in ((value,) if isinstance(value, str) else value)}
        yield "  " + (
            _("{what}: as in {profile}, which this machine has")
            if values <= same[name]
            else _("{what}: other than in {profile}")
        ).format(what=text, profile=ours.name)
    if found.names_server:
        yield "  " + _("a single server (TargetServerEntry): not used; its line can be imported with --unsigned")
    if found.others:
        count = len(found.others)
        yield "  " + ngettext(
            "{count} other setting, which is not used here",
            "{count} other settings, which are not used here",
            count,
        ).format(count=count)


@click.command(
    help=_("Write the stored list as it was signed, for another computer."),
    short_help=_("Write the list as it was signed, for another computer."),
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def export(*, file: Path) -> int:
    """Write a new file; an existing one is not replaced."""
    from psiphon_vpn.servers.errors import ListError, ListFlaw
    from psiphon_vpn.servers.store import ServerStore

    layout = Layout()
    stored = ServerStore(layout).open_current()
    if stored is None:
        advice = advise(Need.SERVERS, layout)
        raise ListError(
            ListFlaw.NONE_STORED,
            advice.why or _("there is no server list on this machine"),
            advice.step,
            what=_("Nothing was exported"),
        )
    record, content = stored
    try:
        with file.open("xb") as written:
            written.write(content)
    except OSError as error:
        raise UserError(
            _("Nothing was exported"), f"{file}: {error.strerror or error}", _("Give the name of a new file.")
        ) from error
    click.echo(
        _("{path}: {servers}. It counts elsewhere only by its signature.").format(
            path=file, servers=_count(record.entries)
        )
        if record.signed
        else _("{path}: {servers} that nobody has signed; import them with --unsigned.").format(
            path=file, servers=_count(record.entries)
        )
    )
    return 0


@click.command(
    help=_("Trust the key of another Psiphon network that a file names; asks first."),
    short_help=_("Trust the key of another Psiphon network; asks first."),
)
@click.argument("file", metavar="FILE")
@click.option("--name", default="custom", show_default=True, help=_("The name that it gets in the configuration."))
@click.option("--yes", is_flag=True, help=_("Do not ask."))
@click.pass_obj
def trust(runtime_dir: Path, *, file: str, name: str, yes: bool) -> int:
    """Make a profile of root's of a psiphon.config, a config.toml or a profile, and use it."""
    need_root("servers trust")
    need_set_up(runtime_dir, _("The key is not trusted"))
    from psiphon_vpn.cli.config_edit import change, find_changes
    from psiphon_vpn.servers.given_file import STDIN, read_given
    from psiphon_vpn.servers.profile import NONE, PUBLIC, load_profile
    from psiphon_vpn.servers.trusting import MAX_FOREIGN, is_same_network, make_of, read_foreign, store_profile

    if name in {PUBLIC, NONE}:
        raise click.BadParameter(_("this name is taken."), param_hint="--name")
    layout = Layout()
    source = _("standard input") if file == STDIN else os.path.abspath(file)
    found = read_foreign(read_given(file, high=MAX_FOREIGN))
    profile = make_of(found, name=name, source=source.encode(errors="backslashreplace").decode())
    if is_same_network(profile, load_profile(PUBLIC, layout)) and set(profile.list_urls) <= set(
        load_profile(PUBLIC, layout).list_urls
    ):
        click.echo(_("This is the public network, which this machine knows: nothing has to be trusted."))
        return 0
    for line in _describe_profile(profile):
        click.echo(line, err=True)
    if not _confirm(_("Trust this key, and use its servers?"), yes=yes):
        return _unchanged()
    store_profile(profile, layout)
    click.echo(_("The network {name} is trusted.").format(name=name))
    return change(runtime_dir, find_changes([f"servers={name}"]), path=None)


def _describe_profile(profile: Profile) -> Iterator[str]:
    yield _("Whoever has this key decides through which servers your traffic goes, and can see where to.")
    yield _("  Key (SHA-256):  {digest}").format(digest=profile.key_digest)
    for url in profile.list_urls:
        yield _("  Server list:    {url}").format(url=url.url)
    for address in profile.osl_urls:
        yield _("  More lists:     {url}").format(url=address)
    yield _("Compare the key with one that you have from a source that you trust.")


SUBCOMMANDS: Final = (list_, import_, export, trust)
