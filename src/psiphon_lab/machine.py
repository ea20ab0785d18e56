# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine under test: the real service on the world's client, started as an installation starts it.

Plain `nft -f` loads the boot rules, an `nft -i` that stays holds the guards, and the daemon runs as psiphon-user with
exactly the three capabilities of R8. Only the core may be a stand-in; the caller chooses it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.namespace import PATIENCE, Host, LabError
from psiphon_lab.service_adapter import daemon, names
from psiphon_lab.service_adapter.boot_lock import (
    InterfaceName,
    make_identity,
    render_boot_rules,
    render_bridges,
    render_guards,
)
from psiphon_lab.service_adapter.bring_list import find_lists, write_profile
from psiphon_lab.service_adapter.installed import CONFIG_DIR, GROUP, USER
from psiphon_lab.world import World

LAB_UID = 64190
"""The uid of psiphon-user on lab machines. No distribution assigns it."""


# What a kernel without owned tables or without the egress hook refuses. Neither stays.
_OWNED = f"add table inet {names.SCRATCH_TABLE} {{ flags owner; }}\nlist table inet {names.SCRATCH_TABLE}\n"
_EGRESS = f'table netdev {names.SCRATCH_TABLE} {{ chain c {{ type filter hook egress device "lo" priority 0; }}; }}'
_PRIVATE = """
mount -t tmpfs tmpfs /run
mkdir -p /run/certificates /run/etc /run/etc.work /run/lib /run/lib.work
mount --bind /etc/ssl/certs /run/certificates
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work /etc
mount --bind /run/certificates /etc/ssl/certs
mount -t overlay overlay -o lowerdir=/var/lib,upperdir=/run/lib,workdir=/run/lib.work /var/lib
echo '{user}:x:{uid}:{uid}::/:/usr/sbin/nologin' >>/etc/passwd
echo '{group}:x:{uid}:' >>/etc/group
mkdir -p {config} {lists}
mount --bind {here} {config}
mount --bind {own_lists} {lists}
exec "$@"
"""


class Machine:
    """The service on the client. A context manager: everything that it starts ends with it.

    Args:
        world: the client's world.
        core: the core's program, or the record of an installed one.
        entry: returns the server entry for TargetServerEntry; called whenever the configuration is written.
        settings: further lines of the configuration file, at its top level.
    """

    def __init__(
        self, world: World, *, core: Path, entry: Callable[[], str], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.world = world
        self.client: Host = world.client
        self.identity = make_identity(LAB_UID)
        self._core = core
        self.core_sha256: str | None = None
        """The SHA-256 that the daemon expects of `core`; None for the actual one, or the record's."""
        self._entry = entry
        self._settings = {"ipv6_probe": [plan.INTERNET6], **(settings or {})}
        self._kept = False
        self._daemon: subprocess.Popen[bytes] | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._guards: tuple[str, ...] | None = None
        self._directory = world.directory / "machine"
        self.program = [*daemon.DAEMON]
        """The module or file that Python runs as the daemon. A test may use a launcher instead."""
        self._bridges: tuple[InterfaceName, ...] = ()
        self.log_path = self._directory / "daemon.log"
        self.config_path = self._directory / "config.toml"
        self._pipe = self._directory / "guard.pipe"
        self.state_dir = self._directory / "state"
        self.runtime_dir = self._directory / "run"
        self._root = self._directory / "root"

    def __enter__(self) -> Machine:
        self._directory.mkdir(parents=True, exist_ok=True)
        for directory in (self.state_dir, self.runtime_dir):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
            _chown(directory, LAB_UID)
        self.write_config()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept:
            return
        self.stop_daemon()
        self.release_guard()

    def keep(self) -> None:
        """Leave the daemon and the guards running when the block ends."""
        self._kept = True

    # -- the parts of an installation ------------------------------------------------------------------------------

    def write_config(self, text: str | None = None, *, entry: str | None = None, target: bool = True) -> None:
        """Write the configuration file: the laboratory's own, or any text.

        entry: another server entry for the laboratory's own. target: whether that contains a server entry.
        """
        if text is None:
            text = daemon.render_settings(self._settings, entry=(entry or self._entry()) if target else None)
        self.config_path.write_text(text, encoding="utf-8")
        self.config_path.chmod(0o600)
        _chown(self.config_path, LAB_UID)

    def trust_network(self, name: str, profile: str) -> None:
        """Let root trust another network than the public one, and choose it. profile: the text of its profile."""
        write_profile(self._root, name, profile)
        own = self.config_path.with_name("profiles")
        own.mkdir(exist_ok=True)
        (own / f"{name}.toml").write_text(profile, encoding="ascii")
        self._settings["servers"] = name
        self.write_config(target=False)

    def trust_authority(self, certificate: Path) -> None:
        """Let this authority, and no other, vouch for hosts, to every program of this machine."""
        place = self._directory / "certificates"
        place.mkdir()
        (place / "ca-certificates.crt").write_bytes(certificate.read_bytes())
        self.client.run(["mount", "--bind", place, "/etc/ssl/certs"])

    def bring_list(
        self, name: str, *, authority: Path, bundle: Path | None = None, through_tunnel: bool = False
    ) -> None:
        """Bring the list of a network and put it in use, as `install`, `setup` and `servers refresh` do.

        Args:
            name: of the network's profile.
            authority: the certificate that the list's host is checked by.
            bundle: a file with the list; None: a download by this machine.
            through_tunnel: whether that goes through the open tunnel; otherwise it is in the open.
        """
        argv: list[str | Path] = ["--root", self._root, "--profile", name, "--authority", authority]
        argv += [] if bundle is None else ["--bundle", bundle]
        argv += ["--through", self.runtime_dir] if through_tunnel else []
        self.client.run([sys.executable, "-m", "psiphon_lab.service_adapter.bring_list", *argv])

    def set_region(self, region: str) -> str:
        """Run `psiphon-vpn region` on this machine's own configuration; returns what it prints."""
        return self.run_command("region", region, "--file", str(CONFIG_DIR / "config.toml")).stdout

    def run_command(self, *words: str, said: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `psiphon-vpn` with these words as root.

        It finds accounts, configuration, profiles and lists where an installation has them, but in its own /etc, /run
        and /var/lib: nothing of the laboratory may get into the real ones.

        Args:
            words: of the command line, after the program's name.
            said: its standard input.
            check: raise LabError if it fails.
        """
        lists = find_lists(self._root)
        lists.mkdir(parents=True, exist_ok=True)
        script = _PRIVATE.format(
            here=shlex.quote(str(self._directory)),
            config=CONFIG_DIR,
            own_lists=shlex.quote(str(lists)),
            lists=find_lists(Path("/")),
            user=USER,
            group=GROUP,
            uid=LAB_UID,
        )
        argv = [*daemon.build_client_command(self.runtime_dir), *words]
        return self.client.run(["unshare", "--mount", "--", "sh", "-ec", script, "sh", *argv], input=said, check=check)

    def boot_lock(self, *, alone: bool = False) -> None:
        """Load the boot rules with plain nft, without Python, as psiphon-killswitch.service does.

        alone: remove all other rules in the same transaction, so that nothing is open in between.
        """
        boot = self._directory / "boot.nft"
        boot.write_text(("flush ruleset\n" if alone else "") + render_boot_rules(self.identity))
        self.client.run(["nft", "-f", boot])

    def _write_guards(self, *, replacing: bool) -> bytes:
        """Write the guards' rules; returns the commands for the holder's nft."""
        guards = render_guards(
            self.identity,
            cards=(LAN_A.interface, LAN_B.interface),
            bridges=self._bridges,
            replacing=replacing,
            bridge_guard=names.BRIDGE_GUARD in self.client.run(["nft", "list", "tables"]).stdout,
        )
        commands = []
        for name, rules in guards.files.items():
            path = self._directory / name
            path.write_text(rules)
            path.chmod(0o644)
            commands.append(f'include "{path}"')
        return "".join(f"{command}\n" for command in (*commands, *guards.commands)).encode()

    def allow_bridges(self, *bridges: InterfaceName) -> None:
        """Write what `psiphon-vpn bridge` writes. Holder and daemon read it when they reload."""
        self._bridges = bridges
        self.config_path.with_name("bridges").write_text(render_bridges(bridges))

    def _list_guards(self) -> tuple[str, ...]:
        """The guards that this kernel can have: the unit starts no holder where there are no owned tables."""
        if self._guards is None:
            owned = self.client.run(["nft", "-i"], input=_OWNED, check=False).stdout
            egress = self.client.run(["nft", "-c", "-f", "-"], input=_EGRESS, check=False).returncode == 0
            able = names.GUARDS if "flags owner" in owned else ()
            self._guards = tuple(guard for guard in able if egress or not guard.startswith("netdev "))
        return self._guards

    def hold_guard(self) -> None:
        """Start the holder as its unit does: an nft that loads wire guard and frame guard, owns them and stays."""
        if not self._list_guards():
            return
        # The holder has the pipe open for reading and writing, so it never reads an end of file.
        self._pipe.unlink(missing_ok=True)
        os.mkfifo(self._pipe, 0o600)
        descriptor = os.open(self._pipe, os.O_RDWR)
        try:
            os.write(descriptor, self._write_guards(replacing=False))
            self._holder = self.client.spawn(
                ["nft", "-i"], stdin=descriptor, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        finally:
            os.close(descriptor)
        self.wait_for(self._guards_stand, "the guards")

    def reload_guard(self) -> None:
        """Have the holder replace its own tables without ending, as an upgrade does."""
        if self._holder is None:
            return
        before = self._guard_handles()
        self._pipe.write_bytes(self._write_guards(replacing=True))
        self.wait_for(lambda: not before & self._guard_handles() and self._guards_stand(), "the guards, replaced")

    def _guard_handles(self) -> set[str]:
        listing = self.client.run(["nft", "-a", "-s", "list", "ruleset"], check=False).stdout
        words = [f"table {guard} " for guard in names.GUARDS]
        return {line for line in listing.splitlines() if line.startswith(tuple(words))}

    def _guards_stand(self) -> bool:
        tables = self.client.run(["nft", "list", "tables"], check=False).stdout
        return (f"table {names.BRIDGE_GUARD}\n" in tables) is bool(self._bridges) and all(
            f"table {guard}\n" in tables for guard in self._list_guards()
        )

    def release_guard(self) -> None:
        """End the holder; the kernel removes its tables."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(timeout=PATIENCE)
            self._holder = None

    def start_daemon(self) -> None:
        """Start the daemon as its unit does; returns once its control socket answers."""
        arguments = daemon.build_arguments(
            config=self.config_path,
            core=self._core,
            core_sha256=self.core_sha256,
            servers=find_lists(self._root) if self._root.exists() else None,
        )
        with self.log_path.open("ab") as log:
            self._daemon = self.client.spawn(
                [sys.executable, *self.program, *arguments],
                uid=LAB_UID,
                gid=LAB_UID,
                ambient=daemon.CAPABILITIES,
                bounding=daemon.CAPABILITIES,
                no_new_privs=True,
                env=daemon.build_environment(state_dir=self.state_dir, runtime_dir=self.runtime_dir),
                stdout=log,
                stderr=log,
                cwd="/",
            )
        self.wait_for(self._answers, "the control socket")

    def _answers(self) -> bool:
        return self.read_status() is not None

    def _check_alive(self) -> None:
        if self._daemon is not None and self._daemon.poll() is not None:
            raise LabError(f"the daemon ended with code {self._daemon.returncode}: {self.read_log()[-2000:]}")

    def stop_daemon(self) -> None:
        """End the daemon with SIGTERM, as the service manager does. The rules stay."""
        self._end_daemon(signal.SIGTERM)

    def kill_daemon(self) -> None:
        """End the daemon with SIGKILL."""
        self._end_daemon(signal.SIGKILL)

    def signal_daemon(self, number: signal.Signals) -> None:
        """Send the daemon another signal, such as SIGSTOP or SIGCONT."""
        if self._daemon is not None:
            self._daemon.send_signal(number)

    def _end_daemon(self, number: signal.Signals) -> None:
        if self._daemon is None:
            return
        self._daemon.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._daemon.wait(timeout=PATIENCE)
        if self._daemon.poll() is None:
            self._daemon.kill()
            self._daemon.wait()
        self._daemon = None

    # -- what a user does and sees ----------------------------------------------------------------------------------

    @property
    def daemon_pid(self) -> int:
        """The daemon's process id. Raises LabError if it does not run."""
        if self._daemon is None or self._daemon.poll() is not None:
            raise LabError(f"the daemon does not run: {self.read_log()[-2000:]}")
        return self._daemon.pid

    def read_log(self) -> str:
        """The daemon's log."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def read_status(self) -> dict[str, Any] | None:
        """The daemon's status, or None if it does not answer."""
        return daemon.request_status(self.runtime_dir)

    def command(self, name: str) -> dict[str, Any]:
        """Send a command to the daemon, as root; returns the status after it."""
        return daemon.send_command(self.runtime_dir, name)

    def wait_state(self, state: str, *, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait for a state; returns the status. Raises LabError with the log after `seconds`."""
        last: dict[str, Any] | None = None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            last = self.read_status()
            if last is not None and last["state"] == state:
                return last
            self._check_alive()
            time.sleep(0.02)
        raise LabError(f"not {state} within {seconds:g} s, but {last}\n{self.read_log()[-4000:]}")

    def wait_for(self, condition: Callable[[], bool], what: str, *, seconds: float = PATIENCE) -> float:
        """Wait for a condition; returns how long it took, in seconds. Raises LabError with the log after `seconds`."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if condition():
                return time.monotonic() - begin
            self._check_alive()
            time.sleep(0.005)
        raise LabError(f"{what} did not come within {seconds:g} s\n{self.read_log()[-4000:]}")

    def read_resident_kib(self) -> int:
        """Resident memory of the daemon, KiB (VmRSS of proc(5))."""
        for line in Path(f"/proc/{self.daemon_pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise LabError("no VmRSS")

    def lease_remains(self) -> bool:
        """Whether the kernel holds a lease now."""
        listing = self.client.run(["nft", "list", "set", "inet", names.BASE_TABLE, names.LEASE_SET], check=False)
        return names.TUN_NAME in listing.stdout


def _chown(path: Path, uid: int) -> None:
    os.chown(path, uid, uid)
