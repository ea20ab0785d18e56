# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Output of the status: sentences for people who are afraid of being seen, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

from psiphon_vpn import client
from psiphon_vpn.client import Status, clean_text
from psiphon_vpn.errors import EXIT_DAEMON_DOWN, EXIT_FAILURE, DaemonDownError
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.local_time import show_duration, show_moment, show_time
from psiphon_vpn.terminal import clear, echo, find_size, style
from psiphon_vpn.wrapping import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from psiphon_vpn.client import Directory
    from psiphon_vpn.system.layout import Layout

    Prepare = Callable[[], object]
    """What has to be done before nft runs (`local_accounts`); it costs more than the daemon's answer."""

DAEMON_DOWN: Final = "daemon-down"
NOT_SET_UP: Final = "NOT_SET_UP"
"""The state of a machine that has the program, and on which `setup` was not run to its end."""
RELEASED: Final = "RELEASED"
"""The state of a machine after `release`; never a state of the daemon, which does not run then."""
RETRY_SECONDS: Final = 1.0
REFRESH_SECONDS: Final = 2.0
_LABEL_WIDTH: Final = 12
# Parts of the opening, not of the lock: while locked, their absence is normal.
_ONLY_WHILE_OPEN: Final = ("tun", "lease")


def find_status(runtime_dir: Directory, *, layout: Layout | None = None, prepare: Prepare | None = None) -> Status:
    """Ask the daemon; if it does not answer, ask the kernel itself.

    Args:
        runtime_dir: the daemon's.
        layout: of the installation; None for this machine's. A daemon elsewhere is a laboratory's, and needs none.
        prepare: called before the kernel is read.

    Returns:
        The daemon's status object. In the kernel's answer `reason_code` is "daemon-down", `locked` may be null
        (unknown), and everything that only the daemon knows is null.
    """
    try:
        return client.request_status(runtime_dir)
    except DaemonDownError as error:
        if prepare is not None:
            prepare()
        return _read_from_kernel(error, runtime_dir, layout)


def _read_from_kernel(error: DaemonDownError, runtime_dir: Directory, layout: Layout | None = None) -> Status:
    from pathlib import Path

    from psiphon_vpn.linux.lockstate import read_lock_state
    from psiphon_vpn.system.layout import Layout
    from psiphon_vpn.system.next_step import Need, advise
    from psiphon_vpn.system.released import read_record
    from psiphon_vpn.system.set_up import SetUp, find_set_up

    layout = layout or Layout()
    lock = read_lock_state()
    state = {True: "LOCKED", False: "UNLOCKED", None: "UNKNOWN"}[lock.locked]
    reason, next_step, since = lock.sentence, error.next_step, None
    # The kernel says whether the machine is open, the record only why: it never makes a locked machine open.
    if lock.locked is False and (released := read_record(layout)) is not None:
        state, since = RELEASED, released.since
        reason = _("somebody ran 'release' (user number {uid}); it lasts until 'start' or the next boot").format(
            uid=released.by
        )
        next_step = _("To lock it again: sudo psiphon-vpn start")
    elif Path(runtime_dir) == layout.runtime_dir and (found := find_set_up(layout)) is not SetUp.YES:
        advice = advise(Need.SERVICE, layout)
        if found is not SetUp.NO:
            state, reason, next_step = NOT_SET_UP, advice.why, advice.step
        elif lock.locked is not True:
            state, reason = NOT_SET_UP, _("nobody has set up this computer; nothing of its network was changed")
            next_step = advice.step
    return {
        "state": state,
        "reason": reason,
        "reason_code": DAEMON_DOWN,
        "next_step": next_step,
        "since": since,
        "next_try": None,
        "next_try_seconds": None,
        "next_try_what": None,
        "locked": lock.locked,
        "intent": None,
        "region": None,
        "region_wanted": None,
        "regions_available": [],
        "servers": None,
        "connection": None,
        "lasting": False,
        "uplink": None,
        "layers": dict(lock.layers),
        "missing_features": [],
        "core_pid": None,
    }


def find_exit_code(status: Status) -> int:
    """Return 0 if the daemon says that the machine is locked, 3 without a daemon, 1 for an unlocked machine."""
    if status.get("state") in {RELEASED, NOT_SET_UP}:
        return EXIT_FAILURE
    if status.get("reason_code") == DAEMON_DOWN:
        return EXIT_DAEMON_DOWN
    return 0 if status.get("locked") is True else EXIT_FAILURE


def render_json(status: Status) -> str:
    """Return one line of JSON, ASCII only."""
    return json.dumps(status)


def find_width(columns: int | None = None) -> int:
    """Columns for running text: those of the terminal, within limits."""
    return max(40, min(find_size()[0] if columns is None else columns, 100))


def render_text(status: Status, *, width: int | None = None) -> str:
    """Return the status in sentences.

    Args:
        status: the status object; missing or malformed fields are left out.
        width: of the terminal in columns; None asks the terminal.
    """
    width = find_width(width)
    headline, color = _find_headline(status)
    lines = [style(line, color=color, bold=True) for line in wrap(headline, width)]
    for label, text in _list_facts(status):
        lines += wrap(clean_text(text), width, first=label.ljust(_LABEL_WIDTH), rest=" " * _LABEL_WIDTH)
    return "\n".join(lines)


def _find_headline(status: Status) -> tuple[str, str]:
    locked, state = status.get("locked"), status.get("state")
    if status.get("reason_code") == DAEMON_DOWN:
        if state == RELEASED and locked is False:
            return _("RELEASED. The lock was opened on purpose: traffic leaves this machine without the tunnel."), "red"
        if state == NOT_SET_UP:
            if locked is True:
                return _("NOT SET UP to the end, and LOCKED. Nothing can leave this machine."), "red"
            return _("NOT SET UP. Traffic can leave this machine without a tunnel."), "red"
        if locked is True:
            return _("LOCKED, and the service is not running. Nothing can leave this machine."), "yellow"
        if locked is False:
            return _(
                "NOT LOCKED, and the service is not running. Traffic can leave this machine without a tunnel."
            ), "red"
        return _("The service is not running, and it is unknown whether the machine is locked."), "red"
    if locked is not True:
        return _("NOT LOCKED. Traffic can leave this machine outside the tunnel."), "red"
    if state == "OPEN":
        return _("PROTECTED and connected. Traffic leaves this machine through the tunnel only."), "green"
    if state == "CONNECTING":
        return _("PROTECTED, connecting. Nothing leaves this machine until the tunnel is ready."), "yellow"
    if state == "VERIFYING":
        return _("PROTECTED, almost connected. The tunnel is being checked before anything may use it."), "yellow"
    if state == "FAILED":
        return _("PROTECTED, but offline, and the service needs your help to go on."), "red"
    return _("PROTECTED and offline. Nothing can leave this machine."), "yellow"


def _list_facts(status: Status) -> Iterator[tuple[str, str]]:
    if reason := status.get("reason"):
        yield _("Why:"), str(reason)
    if next_step := status.get("next_step"):
        yield _("What to do:"), str(next_step)
    if since := status.get("since"):
        yield _("Since:"), show_moment(str(since))
    if at := status.get("next_try"):
        what = status.get("next_try_what") or _("trying again")
        left = status.get("next_try_seconds")
        if isinstance(left, int | float) and left >= 0:
            # Rounded up: no wait seems to be over before it is.
            told = _("{what}, in {duration}, at {time}")
            yield _("Next:"), told.format(what=what, duration=show_duration(-int(-left // 1)), time=show_time(str(at)))
        else:
            yield _("Next:"), _("{what}, at {time}").format(what=what, time=show_time(str(at)))
    if region := status.get("region"):
        yield _("Exit:"), _("you appear on the internet in {region}").format(region=region)
    yield from _list_connection(status.get("connection"))
    if status.get("state") != "OPEN":
        yield from _list_servers(status)
    if uplink := _describe_uplink(status.get("uplink")):
        yield _("Network:"), uplink
    moved = status.get("moved_away")
    if isinstance(moved, list) and moved:
        yield (
            _("Beware:"),
            _("{names} now belongs to another network namespace, which this lock does not cover").format(
                names=", ".join(map(str, moved))
            ),
        )
    yield from _list_bridges(status.get("bridges"))
    if (proxy := status.get("socks")) and isinstance(proxy, dict) and proxy.get("available") is False:
        yield (
            _("SOCKS:"),
            _(
                "off, since another program listens on port {port}; the tunnel works without it. To have it: end that "
                "program or set another 'socks_port' in the configuration, then: sudo psiphon-vpn restart"
            ).format(port=proxy.get("port")),
        )
    if off := status.get("ipv6_off"):
        yield (
            _("IPv6:"),
            _("this kernel has no IPv6; nothing leaves by it")
            if off == "absent"
            else _("turned off on this machine (disable_ipv6); nothing leaves by it"),
        )
    if status.get("state") != NOT_SET_UP or status.get("locked") is True:
        # Where nothing was set up nothing is missing, and no unit is there that a layer's next step could name.
        yield from _list_layers(status.get("layers"), is_open=status.get("state") == "OPEN")
    missing = status.get("missing_features")
    if isinstance(missing, list) and missing:
        names = ", ".join(map(str, missing))
        yield _("Missing:"), _("this kernel or its tools lack {names}; the other layers hold").format(names=names)


def _read_number(facts: dict[str, object], name: str) -> int:
    value = facts.get(name)
    return value if isinstance(value, int) else 0


def _show_bytes(count: int) -> str:
    """A number of bytes, or of bytes per second, in decimal units as disks and providers use them."""
    if count < 1000:
        return f"{count} B"
    sizes = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    unit, size = next(((unit, size) for unit, size in sizes.items() if count < 1000 * size), ("TB", 10**12))
    return f"{count / size:.1f} {unit}"


def _list_connection(connection: object) -> Iterator[tuple[str, str]]:
    if not isinstance(connection, dict):
        return
    duration = show_duration(_read_number(connection, "seconds"))
    protocol = connection.get("protocol")
    yield (
        _("Tunnel:"),
        _("by {protocol}, for {duration}").format(protocol=protocol, duration=duration)
        if protocol
        else _("for {duration}").format(duration=duration),
    )
    shown = {
        name: _show_bytes(_read_number(connection, name))
        for name in ("sent", "received", "rate_up", "rate_down", "limit_up", "limit_down")
    }
    yield _("Traffic:"), _("{sent} sent, {received} received; now {rate_up}/s up, {rate_down}/s down").format(**shown)
    limits = {"limit_up": _("{limit_up}/s up"), "limit_down": _("{limit_down}/s down")}
    if found := [text.format(**shown) for name, text in limits.items() if connection.get(name)]:
        yield "", _("the server carries at most {limits}").format(limits=", ".join(found))


def _list_servers(status: Status) -> Iterator[tuple[str, str]]:
    servers = status.get("servers")
    if not isinstance(servers, dict):
        return
    stored = servers.get("list")
    if isinstance(stored, dict):
        count = _read_number(stored, "entries")
        yield (
            _("List:"),
            ngettext("{count} server, received {date}", "{count} servers, received {date}", count).format(
                count=count, date=show_moment(str(stored.get("fetched_at")))
            ),
        )
    if servers.get("known") is None:
        return
    known, tried = _read_number(servers, "known"), _read_number(servers, "tried")
    text = ngettext("{count} known", "{count} known", known).format(count=known)
    if tried:
        protocols = servers.get("protocols")
        text += ", " + ngettext("{count} tried", "{count} tried", tried).format(count=tried)
        if isinstance(protocols, list) and protocols:
            text += " " + _("(by {protocols})").format(protocols=", ".join(map(str, protocols)))
    if region := status.get("region_wanted"):
        text += "; " + _("only in {region}, as you chose").format(region=region)
    yield _("Servers:"), text


def _list_bridges(bridges: object) -> Iterator[tuple[str, str]]:
    label = _("Bridges:")
    for bridge in bridges if isinstance(bridges, list) else ():
        if isinstance(bridge, dict):
            step = f". {bridge.get('next_step')}" if bridge.get("state") != "in_force" else ""
            yield label, f"{bridge.get('name')}: {bridge.get('sentence')}{step}"
            label = ""


def _describe_uplink(uplink: object) -> str | None:
    if not isinstance(uplink, dict):
        return None
    families = [name for key, name in (("ipv4", "IPv4"), ("ipv6", "IPv6")) if uplink.get(key)]
    shown = f"{uplink.get('interface')} ({', '.join(families) or _('no address')})"
    others = uplink.get("others")
    names = ", ".join(map(str, others)) if isinstance(others, list) else ""
    why = {
        "named": _("named in the configuration"),
        "gave_way": _("there was no tunnel over a better one; other networks: {names}").format(names=names),
        "best": _("other networks: {names}").format(names=names),
    }.get(str(uplink.get("chosen")))
    return f"{shown}; {why}" if why else shown


def _list_layers(layers: object, *, is_open: bool) -> Iterator[tuple[str, str]]:
    if not isinstance(layers, dict) or not layers:
        return
    states = {
        name: (str(layer.get("state")), str(layer.get("detail") or ""))
        for name, layer in layers.items()
        if isinstance(layer, dict) and (is_open or name not in _ONLY_WHILE_OPEN)
    }
    in_place = sum(state == "ok" for state, _detail in states.values())
    text = ngettext("{count} of {total} layer in place", "{count} of {total} layers in place", len(states))
    yield _("Layers:"), text.format(count=in_place, total=len(states))
    for name, (state, detail) in states.items():
        if state != "ok":
            yield "", f"{name}: {_name_layer_state(state)}{', ' if detail else ''}{detail}"


def _name_layer_state(state: str) -> str:
    names = {
        "missing": _("missing"),
        "broken": _("broken"),
        "incomplete": _("not everywhere"),
        "unsupported": _("this kernel cannot do it"),
    }
    return names.get(state, state)


def watch(runtime_dir: Directory, *, as_json: bool) -> None:
    """Show every change until Ctrl-C, even while the daemon comes and goes."""
    shown: Status | None = None
    try:
        while True:
            try:
                # On a terminal numbers go on; programs get the changes alone.
                refresh = REFRESH_SECONDS if sys.stdout.isatty() and not as_json else None
                for status in client.watch_status(runtime_dir, refresh=refresh):
                    _show(status, as_json=as_json)
                    shown = status
            except DaemonDownError as error:
                status = _read_from_kernel(error, runtime_dir)
                # Without the daemon there are no events: poll the kernel, and show only changes.
                if status != shown:
                    _show(status, as_json=as_json)
                    shown = status
            time.sleep(RETRY_SECONDS)
    except KeyboardInterrupt:
        return


def _show(status: Status, *, as_json: bool) -> None:
    if as_json:
        echo(render_json(status))
        return
    columns, lines = find_size()
    text = render_text(status, width=columns)
    if sys.stdout.isatty():
        clear()
        hint = style(_("Ctrl-C ends this display."), dim=True)
        # The last row stays free so that the terminal does not scroll the headline away.
        text = "\n".join([*text.splitlines()[: max(1, lines - 3)], "", hint])
    else:
        text += "\n"
    echo(text)
