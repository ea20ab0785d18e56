"""The machine under test: the real service on the world's client, started as an installation starts it.

Boot lock by plain `nft -f`, wire guard by an `nft -i` that is kept open, the daemon as psiphon-user with exactly the
three capabilities of R8. Only the core may be a stand-in: which one is the caller's choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
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
from psiphon_lab.world import World
from psiphon_vpn.core.record import RECORD_NAME
from psiphon_vpn.linux.identity import find_network_managers
from psiphon_vpn.network.bridges import render_bridges
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_frame_guard, build_wire_guard, render_bridge_rules
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.own_tables import BRIDGES, Keeper, list_kept
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import InterfaceName, parse_names

LAB_UID = 64190
"""psiphon-user on lab machines: a uid that no distribution gives to anybody."""
CAPABILITIES = ("net_admin", "net_raw", "net_bind_service")


class Machine:
    """The service on the client. A context manager: what it started ends with it.

    Args:
        world: where the client stands.
        core: the core's program, or the record of an installed one.
        entry: server entry for TargetServerEntry, read when the configuration is written.
        settings: further lines of the configuration file, at its top level.
    """

    def __init__(
        self, world: World, *, core: Path, entry: Callable[[], str], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.world = world
        self.client: Host = world.client
        self.identity = Identity(uid=LAB_UID, gid=LAB_UID, network_manager_uids=find_network_managers())
        self._core = core
        self._entry = entry
        self._settings = {"ipv6_probe": [plan.INTERNET6], **(settings or {})}
        self._kept = False
        self._daemon: subprocess.Popen[bytes] | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._directory = world.directory / "machine"
        self.program = ["-m", "psiphon_vpn.service"]
        """What Python runs as the daemon; a test may put its own launcher around it."""
        self._bridges: tuple[InterfaceName, ...] = ()
        self.log_path = self._directory / "daemon.log"
        self.config_path = self._directory / "config.toml"
        self._pipe = self._directory / "guard.pipe"
        self.state_dir = self._directory / "state"
        self.runtime_dir = self._directory / "run"

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
        """Leave daemon and wire guard running when the block ends."""
        self._kept = True

    # -- the parts of an installation ------------------------------------------------------------------------------

    def write_config(self, text: str | None = None, *, entry: str | None = None, target: bool = True) -> None:
        """Write the configuration file: the lab's own, or any text.

        entry: another server entry. target: whether the lab's own names its server at all.
        """
        if text is None:
            lines = [f"{name} = {json.dumps(value)}" for name, value in self._settings.items()]
            lines += ["[core.advanced]"]
            lines += [f"TargetServerEntry = {json.dumps(entry or self._entry())}"] if target else []
            lines += ["DisableRemoteServerListFetcher = true"]
            text = "\n".join(lines) + "\n"
        self.config_path.write_text(text, encoding="utf-8")
        self.config_path.chmod(0o600)
        _chown(self.config_path, LAB_UID)

    def boot_lock(self) -> None:
        """What psiphon-killswitch.service does: plain nft, no Python."""
        boot = self._directory / "boot.nft"
        boot.write_text(build_base_table(Policy(state=State.LOCKED, identity=self.identity)).render_replacement())
        self.client.run(["nft", "-f", boot])

    def _guard_tables(self) -> tuple[Table, ...]:
        # Both providers' cards are known when the rules are made, plugged in or not.
        frames = build_frame_guard(self.identity, parse_names(LAN_A.interface, LAN_B.interface))
        return build_wire_guard(self.identity), frames

    def _write_guards(self, *, replacing: bool) -> bytes:
        """What the holder is told: a command for each table, so that one that the kernel refuses costs no other."""
        lines = []
        for table in self._guard_tables():
            path = self._directory / f"{table.name}.nft"
            address = f"{table.family} {table.name}"
            # Replaced in one transaction: the table of before is gone when the new one is there, and not earlier.
            before = f"table {address} {{\n\tflags {table.flags}\n}}\ndelete table {address}\n" if replacing else ""
            path.write_text(before + table.render())
            path.chmod(0o644)
            lines.append(f'include "{path}"\n')
        if self._bridges:
            path = self._directory / "bridges.nft"
            path.write_text(render_bridge_rules(self.identity, self._bridges))
            lines.append(f'include "{path}"\n')
        elif replacing and str(BRIDGES) in self.client.run(["nft", "list", "tables"]).stdout:
            lines.append(f"delete table {BRIDGES}\n")
        return "".join(lines).encode()

    def allow_bridges(self, *bridges: InterfaceName) -> None:
        """What `psiphon-vpn bridge` writes. Holder and daemon have to be told to read it."""
        self._bridges = bridges
        self.config_path.with_name("bridges").write_text(render_bridges(bridges))

    def hold_guard(self) -> None:
        """What the holder unit does: an nft that loads wire guard and frame guard, owns their tables and stays."""
        # Opened for reading and writing by the holder itself, the pipe never ends, whoever else goes away.
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
        """What an upgrade does to the holder: it replaces its own tables, and is not ended."""
        before = self._guard_handles()
        self._pipe.write_bytes(self._write_guards(replacing=True))
        self.wait_for(lambda: not before & self._guard_handles() and self._guards_stand(), "the guards, replaced")

    def _guard_handles(self) -> set[str]:
        listing = self.client.run(["nft", "-a", "-s", "list", "ruleset"], check=False).stdout
        words = [f"table {table.family} {table.name} " for table in self._guard_tables()]
        return {line for line in listing.splitlines() if line.startswith(tuple(words))}

    def _guards_stand(self) -> bool:
        tables = self.client.run(["nft", "list", "tables"], check=False).stdout
        wanted = [table for table in list_kept(Keeper.HOLDER) if not table.on_request]
        return (f"table {BRIDGES}\n" in tables) is bool(self._bridges) and all(
            f"table {table}\n" in tables for table in wanted
        )

    def release_guard(self) -> None:
        """End the holder: the kernel removes its table."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(timeout=PATIENCE)
            self._holder = None

    def start_daemon(self) -> None:
        """Start psiphon-vpnd as its unit does; returns once its control socket answers."""
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "STATE_DIRECTORY": str(self.state_dir),
            "RUNTIME_DIRECTORY": str(self.runtime_dir),
            "LC_ALL": "C.UTF-8",
        }
        with self.log_path.open("ab") as log:
            self._daemon = self.client.spawn(
                [
                    sys.executable,
                    *self.program,
                    "--config",
                    self.config_path,
                    *self._core_options(),
                ],
                uid=LAB_UID,
                gid=LAB_UID,
                ambient=CAPABILITIES,
                bounding=CAPABILITIES,
                no_new_privs=True,
                env=environment,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        self.wait_for(self._answers, "the control socket")

    def _core_options(self) -> list[str | Path]:
        """The core and what it has to be; a record says both as on an installed machine."""
        if self._core.name == RECORD_NAME:
            return ["--core-record", self._core]
        return ["--core", self._core, "--core-sha256", hashlib.sha256(self._core.read_bytes()).hexdigest()]

    def _answers(self) -> bool:
        return self.read_status() is not None

    def _check_alive(self) -> None:
        if self._daemon is not None and self._daemon.poll() is not None:
            raise LabError(f"the daemon ended with code {self._daemon.returncode}: {self.read_log()[-2000:]}")

    def stop_daemon(self) -> None:
        """SIGTERM, as the service manager does; the rules stay."""
        self._end_daemon(signal.SIGTERM)

    def kill_daemon(self) -> None:
        """SIGKILL."""
        self._end_daemon(signal.SIGKILL)

    def signal_daemon(self, number: signal.Signals) -> None:
        """Any other signal: SIGSTOP, SIGCONT."""
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
        """The daemon's process. Raises LabError if it does not run."""
        if self._daemon is None or self._daemon.poll() is not None:
            raise LabError(f"the daemon does not run: {self.read_log()[-2000:]}")
        return self._daemon.pid

    def read_log(self) -> str:
        """What the daemon has logged."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def read_status(self) -> dict[str, Any] | None:
        """The daemon's status by its control socket, None when it does not answer."""
        from psiphon_vpn.client import request_status
        from psiphon_vpn.errors import UserError

        try:
            return dict(request_status(self.runtime_dir, timeout=30.0))
        except UserError:
            return None

    def command(self, name: str) -> dict[str, Any]:
        """One of the control socket's commands, as root."""
        from psiphon_vpn.client import send_command

        return dict(send_command(self.runtime_dir, name))

    def wait_state(self, state: str, *, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait for a state; returns the status. Raises LabError with the log when it does not come."""
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
        """Wait for something; returns how long it took, in seconds."""
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
