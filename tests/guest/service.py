# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole service in a guest: boot lock, the guards by their holder's own script, the daemon, a stand-in core."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from psiphon_lab.guest.guest import Guest, quote
from psiphon_lab.guest.source import UNPACK, pack_source, python
from psiphon_lab.launch import setpriv_argv
from psiphon_lab.machine import LAB_UID
from psiphon_lab.probe import ProbeSpec
from psiphon_lab.service_adapter.daemon import CAPABILITIES
from psiphon_vpn.network.bridges import render_bridges
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_frame_guard, build_wire_guard, render_bridge_rules
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.system.units import render_guard_script

IDENTITY: Final = Identity(uid=LAB_UID, gid=LAB_UID)
PROBE_SECONDS: Final = 10.0
"""How long a probe waits for its answer: an emulated processor on a busy machine takes seconds to send one."""
STATE_SECONDS: Final = 420.0
"""An emulated processor on a busy machine needs minutes."""
_GUARD: Final = "RUNTIME_DIRECTORY=/run/psiphon-guard sh /exchange/rules/guard"

# The service reports each change, so that a slow processor need not be polled.
_WAIT = """
import json, signal, sys, time
from pathlib import Path
from psiphon_vpn.client import watch_status
from psiphon_vpn.errors import UserError
wanted, last = eval("lambda status: " + sys.argv[1]), {}
class Late(BaseException):
    pass
def give_up(*_):
    raise Late
signal.signal(signal.SIGALRM, give_up)
signal.alarm(int(sys.argv[2]))
try:
    while True:
        try:
            for last in watch_status(Path("/run/psiphon"), timeout=60.0):
                if wanted(last):
                    break
            else:
                continue
            break
        except UserError:
            time.sleep(1)
except Late:
    pass
print(json.dumps(last))
"""


class GuestService:
    """The service in a guest.

    Args:
        guest: one that is on.
        entry: the tunnel server's entry.
        settings: further lines of the configuration file, at its top level.
    """

    def __init__(self, guest: Guest, *, entry: str, settings: Mapping[str, Any] | None = None) -> None:
        self.guest = guest
        self._entry = entry
        self._settings = dict(settings or {})
        self._rules = guest.exchange / "rules"
        self._rules.mkdir()
        (guest.exchange / "source.tar").write_bytes(pack_source())
        guest.run(UNPACK)
        (guest.exchange / "wait.py").write_text(_WAIT)

    def lock(self) -> None:
        """What is there before the daemon: the boot lock, and the guards with their holder."""
        boot = build_base_table(Policy(state=State.LOCKED, identity=IDENTITY))
        (self._rules / "boot.nft").write_text(boot.render_replacement())
        (self._rules / "guard.nft").write_text(build_wire_guard(IDENTITY).render_replacement())
        (self._rules / "frames.nft").write_text(build_frame_guard(IDENTITY).render_replacement())
        (self._rules / "guard").write_text(render_guard_script())
        self._write_bridges()
        self.guest.run(
            f"""
            set -e
            nft -f /exchange/rules/boot.nft
            mkdir -p /run/psiphon-guard
            {_GUARD} hold /exchange/rules/guard.nft >/exchange/holder.log 2>&1 &
            {_GUARD} ready
            """
        )

    def start(self) -> None:
        """Start the daemon as its unit does."""
        exchange = self.guest.exchange
        core = write_core(exchange)
        lines = [f"{name} = {json.dumps(value)}" for name, value in self._settings.items()]
        lines += ["[core.advanced]", f"TargetServerEntry = {json.dumps(self._entry)}"]
        lines += ["DisableRemoteServerListFetcher = true"]
        (exchange / "config.toml").write_text("\n".join(lines) + "\n")
        who = setpriv_argv(
            uid=LAB_UID, gid=LAB_UID, groups=(), ambient=CAPABILITIES, bounding=CAPABILITIES, no_new_privs=True
        )
        options = ["--config", "/run/etc/config.toml", "--core", f"/exchange/{core.name}"]
        options += ["--core-sha256", hashlib.sha256(core.read_bytes()).hexdigest()]
        self.guest.run(
            f"""
            set -e
            chmod 666 /dev/net/tun # as udev does
            mkdir -p /run/psiphon /var/lib/psiphon /run/etc
            cp /exchange/config.toml /run/etc/config.toml
            chmod 600 /run/etc/config.toml
            chown {LAB_UID}:{LAB_UID} /run/psiphon /var/lib/psiphon /run/etc/config.toml
            export STATE_DIRECTORY=/var/lib/psiphon RUNTIME_DIRECTORY=/run/psiphon
            {quote(*who)} {python("-m", "psiphon_vpn.service", *options)} >>/exchange/daemon.log 2>&1 &
            """
        )

    def wait_status(self, wanted: str) -> dict[str, Any]:
        """Wait until the service's status fulfils a condition, a Python expression with `status`."""
        argv = ("/exchange/wait.py", wanted, str(int(STATE_SECONDS)))
        done = self.guest.run(f"nice -n 5 {python(*argv)}", seconds=STATE_SECONDS + 60)
        status: dict[str, Any] = json.loads(done.output)
        assert status, self.read_log()
        assert eval(wanted, {}, {"status": status}), (status, self.read_log())  # noqa: S307 - a test's own words
        return status

    def wait_open(self) -> dict[str, Any]:
        """Wait for a tunnel."""
        return self.wait_status("status['state'] == 'OPEN'")

    def allow_bridges(self, *bridges: InterfaceName) -> None:
        """What `psiphon-vpn bridge` does: the guards, the list, and word to the service."""
        self._write_bridges(*bridges)
        (self._rules / "list").write_text(render_bridges(bridges))
        command = "import pathlib, psiphon_vpn.client as c; c.send_command(pathlib.Path('/run/psiphon'), 'reload')"
        self.guest.run(
            f"""
            set -e
            {_GUARD} reload /exchange/rules/guard.nft
            cp /exchange/rules/list /run/etc/bridges
            {python("-c", command)}
            """
        )

    def _write_bridges(self, *bridges: InterfaceName) -> None:
        (self._rules / "bridges.nft").write_text(render_bridge_rules(IDENTITY, bridges))

    def read_log(self) -> str:
        """The end of the output of daemon and holder."""
        paths = [self.guest.exchange / name for name in ("holder.log", "daemon.log")]
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in paths if path.exists())

    def run_probes(self, specs: Sequence[ProbeSpec], *, uid: int, within: str = "") -> dict[str, str]:
        """What each probe was answered, "" for those that were not. within: words that run a command in a container."""
        asked = json.dumps({"limit": PROBE_SECONDS, "specs": [asdict(spec) for spec in specs]})
        (self.guest.exchange / "probes.json").write_text(asked)
        who = quote(*setpriv_argv(uid=uid, gid=uid, groups=(), ambient=(), bounding=None, no_new_privs=False))
        reported = self.guest.run(f"{within} {who} {python('-m', 'psiphon_lab.probe')} </exchange/probes.json").output
        return {result["id"]: result["answer"] for result in map(json.loads, reported.splitlines())}


def write_core(directory: Path) -> Path:
    """An executable that takes the core's arguments as if it were the real core."""
    path = directory / "psiphon-tunnel-core"
    path.write_text(f'#!/bin/sh\nexec {python("-S", "-s", "-m", "psiphon_lab.standin_core")} "$@"\n')
    path.chmod(0o755)
    return path
