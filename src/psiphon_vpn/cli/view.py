"""Output of the status: sentences for people who are afraid of being seen, JSON for programs."""

import contextlib
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import client
from psiphon_vpn.client import Status, clean_text
from psiphon_vpn.errors import EXIT_DAEMON_DOWN, EXIT_FAILURE, DaemonDownError
from psiphon_vpn.i18n import _, ngettext

DAEMON_DOWN: Final = "daemon-down"
RELEASED: Final = "RELEASED"
"""The state of a machine after `release`; never a state of the daemon, which does not run then."""
RETRY_SECONDS: Final = 1.0
_LABEL_WIDTH: Final = 12
# Parts of the opening, not of the lock: while locked, their absence is normal.
_ONLY_WHILE_OPEN: Final = ("tun", "lease")


def find_status(runtime_dir: Path) -> Status:
    """Ask the daemon; if it does not answer, ask the kernel itself.

    Returns:
        The daemon's status object. In the kernel's answer `reason_code` is "daemon-down", `locked` may be null
        (unknown), and everything that only the daemon knows is null.
    """
    try:
        return client.request_status(runtime_dir)
    except DaemonDownError as error:
        return _read_from_kernel(error)


def _read_from_kernel(error: DaemonDownError) -> Status:
    from psiphon_vpn.linux.lockstate import read_lock_state
    from psiphon_vpn.system.layout import Layout
    from psiphon_vpn.system.released import read_record

    lock = read_lock_state()
    state = {True: "LOCKED", False: "UNLOCKED", None: "UNKNOWN"}[lock.locked]
    reason, next_step, since = lock.sentence, error.next_step, None
    # The kernel says whether the machine is open, the record only why: it never makes a locked machine open.
    if lock.locked is False and (released := read_record(Layout())) is not None:
        state, since = RELEASED, released.since
        reason = _("somebody ran 'release' (user number {uid}); it lasts until 'start' or the next boot").format(
            uid=released.by
        )
        next_step = _("To lock it again: sudo psiphon-vpn start")
    return {
        "state": state,
        "reason": reason,
        "reason_code": DAEMON_DOWN,
        "next_step": next_step,
        "since": since,
        "next_try": None,
        "next_try_what": None,
        "locked": lock.locked,
        "intent": None,
        "region": None,
        "uplink": None,
        "layers": dict(lock.layers),
        "missing_features": [],
        "core_pid": None,
    }


def find_exit_code(status: Status) -> int:
    """Return 0 if the daemon says that the machine is locked, 3 without a daemon, 1 for an unlocked machine."""
    if status.get("state") == RELEASED:
        return EXIT_FAILURE
    if status.get("reason_code") == DAEMON_DOWN:
        return EXIT_DAEMON_DOWN
    return 0 if status.get("locked") is True else EXIT_FAILURE


def render_json(status: Status) -> str:
    """Return one line of JSON, ASCII only."""
    return json.dumps(status)


def render_text(status: Status, *, width: int | None = None) -> str:
    """Return the status in sentences.

    Args:
        status: the status object; missing or malformed fields are left out.
        width: of the terminal in columns; None asks the terminal.
    """
    if width is None:
        width = shutil.get_terminal_size().columns
    width = max(40, min(width, 100))
    headline, color = _find_headline(status)
    lines = [click.style(line, fg=color, bold=True) for line in textwrap.wrap(headline, width)]
    for label, text in _list_facts(status):
        lines += textwrap.wrap(
            clean_text(text), width, initial_indent=label.ljust(_LABEL_WIDTH), subsequent_indent=" " * _LABEL_WIDTH
        )
    return "\n".join(lines)


def _find_headline(status: Status) -> tuple[str, str]:
    locked, state = status.get("locked"), status.get("state")
    if status.get("reason_code") == DAEMON_DOWN:
        if state == RELEASED and locked is False:
            return _("RELEASED. The lock was opened on purpose: traffic leaves this machine without the tunnel."), "red"
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
        yield _("Since:"), _("{date} {time} UTC").format(date=str(since)[:10], time=str(since)[11:19])
    if at := status.get("next_try"):
        what = status.get("next_try_what") or _("trying again")
        yield _("Next:"), _("{what}, at {time} UTC").format(what=what, time=str(at)[11:19])
    if region := status.get("region"):
        yield _("Exit:"), _("you appear on the internet in {region}").format(region=region)
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
    yield from _list_layers(status.get("layers"), is_open=status.get("state") == "OPEN")
    missing = status.get("missing_features")
    if isinstance(missing, list) and missing:
        names = ", ".join(map(str, missing))
        yield _("Missing:"), _("this kernel or its tools lack {names}; the other layers hold").format(names=names)


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


def watch(runtime_dir: Path, *, as_json: bool) -> None:
    """Show every change until Ctrl-C, even while the daemon comes and goes."""
    shown: Status | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                for status in client.watch_status(runtime_dir):
                    _show(status, as_json=as_json)
                    shown = status
            except DaemonDownError as error:
                status = _read_from_kernel(error)
                # Without the daemon there are no events: poll the kernel, and show only changes.
                if status != shown:
                    _show(status, as_json=as_json)
                    shown = status
            time.sleep(RETRY_SECONDS)


def _show(status: Status, *, as_json: bool) -> None:
    if as_json:
        click.echo(render_json(status))
        return
    size = shutil.get_terminal_size()
    text = render_text(status, width=size.columns)
    if sys.stdout.isatty():
        click.clear()
        hint = click.style(_("Ctrl-C ends this display."), dim=True)
        # The last row stays free so that the terminal does not scroll the headline away.
        text = "\n".join([*text.splitlines()[: max(1, size.lines - 3)], "", hint])
    else:
        text += "\n"
    click.echo(text)
