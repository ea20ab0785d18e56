# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The holder of the wire guard as psiphon-guard.service runs it, against the kernel."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import hostile
from tests.integration.kernel import Kernel

from psiphon_lab.launch import clean_environment
from psiphon_lab.waiting import wait_until
from psiphon_vpn.policy.guards import build_egress_guard, build_frame_guard, build_wire_guard, render_bridge_rules
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import parse_names
from psiphon_vpn.system.linux_platform import LinuxKernel
from psiphon_vpn.system.units import render_guard_script

pytestmark = pytest.mark.lab

IDENTITY = Identity(uid=64190, gid=64190, network_manager_uids=(0,))
GUARD = build_wire_guard(IDENTITY)
ADDRESS = ("list", "table", "inet", "psiphon_guard")


class Holder:
    """The script in a namespace of its own, with a runtime directory of its own."""

    def __init__(self, kernel: Kernel, directory: Path) -> None:
        self._kernel = kernel
        self._directory = directory
        self._script = directory / "guard"
        self.cards = directory / "net"
        self._script.write_text(render_guard_script().replace("/sys/class/net", str(self.cards)))
        self._script.chmod(0o755)
        self.rules = directory / "guard.nft"
        self.write(GUARD)
        frames = build_frame_guard(IDENTITY)
        (directory / "frames.nft").write_text(frames.render_replacement())
        self.process: subprocess.Popen[bytes] | None = None

    def be_impatient(self) -> None:
        """Wait half a second instead of half a minute, for what must fail."""
        text, patience = self._script.read_text(), "-lt 600"
        assert patience in text
        self._script.write_text(text.replace(patience, "-lt 10"))

    def be_patient(self) -> None:
        """Wait for ever for what is waited for at all."""
        text, patience = self._script.read_text(), "-lt 600"
        assert patience in text
        self._script.write_text(text.replace(patience, "-ge 0"))

    def use_slow_nft(self) -> None:
        """An nft that begins to hold only after several requests, as on a machine that boots under load."""
        directory = self._directory / "bin"
        directory.mkdir()
        (directory / "nft").write_text(
            f'#!/bin/sh\n[ "$1" = -i ] && while [ "$(cat {directory}/asked | wc -l)" -lt 260 ]; do sleep 0.01; done\n'
            f'echo >>{directory}/asked\nexec /usr/sbin/nft "$@"\n'
        )
        (directory / "nft").chmod(0o755)
        (directory / "asked").touch()
        self._script.write_text(self._script.read_text().replace("PATH=/usr/sbin", f"PATH={directory}:/usr/sbin"))

    def use_nft_that_refuses(self, pattern: str) -> None:
        """A wrapper of nft that refuses text that matches."""
        self._check_by(
            f'text=$(cat); echo "$text" | grep -q \'{pattern}\' && exit 1; echo "$text" | /usr/sbin/nft "$@"'
        )

    def use_nft_that_takes_all(self) -> None:
        """A wrapper of nft that accepts everything when it only checks."""
        self._check_by("cat >/dev/null")

    def _check_by(self, command: str) -> None:
        directory = self._directory / "bin"
        directory.mkdir()
        only_checks = '[ "$1 $2 $3" = "-c -f -" ]'
        (directory / "nft").write_text(f'#!/bin/sh\n{only_checks} || exec /usr/sbin/nft "$@"\n{command}\n')
        (directory / "nft").chmod(0o755)
        self._script.write_text(self._script.read_text().replace("PATH=/usr/sbin", f"PATH={directory}:/usr/sbin"))

    def use_nft_without_the_egress_hook(self) -> None:
        """As before Linux 5.16, for what comes from standard input."""
        directory = self._directory / "bin"
        directory.mkdir()
        refuse = 'text=$(cat); case "$text" in *"hook egress"*) exit 1 ;; esac; echo "$text" | /usr/sbin/nft "$@"'
        reads = 'case "$*" in "-f -" | "-c -f -") ;; *) exec /usr/sbin/nft "$@" ;; esac'
        (directory / "nft").write_text(f"#!/bin/sh\n{reads}\n{refuse}\n")
        (directory / "nft").chmod(0o755)
        self._script.write_text(self._script.read_text().replace("PATH=/usr/sbin", f"PATH={directory}:/usr/sbin"))

    def write(self, table: Table) -> None:
        self.rules.write_text(table.render_replacement())

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = clean_environment(RUNTIME_DIRECTORY=str(self._directory))
        return self._kernel.host.run([self._script, *words], check=False, env=environment, timeout=60)

    def hold(self) -> None:
        environment = clean_environment(RUNTIME_DIRECTORY=str(self._directory))
        self.process = self._kernel.host.spawn([self._script, "hold", self.rules], env=environment)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=60)
            self.process = None


@pytest.fixture
def holder(kernel: Kernel, tmp_path: Path) -> Iterator[Holder]:
    made = Holder(kernel, tmp_path)
    yield made
    made.end()


def handle(kernel: Kernel) -> str:
    return kernel.host.run(["nft", "-a", *ADDRESS]).stdout.splitlines()[0]


@pytest.mark.requirement("R3")
def test_the_holder_is_ready_once_its_table_stands_and_nothing_removes_it(kernel: Kernel, holder: Holder) -> None:
    holder.hold()
    assert holder.call("ready").returncode == 0
    listing = kernel.listing("table", "inet", "psiphon_guard")
    assert "flags owner" in listing
    assert "psiphon-user, TCP and UDP" in listing
    kernel.host.run(["nft", "flush", "ruleset"])
    assert kernel.host.run(["nft", "delete", "table", "inet", "psiphon_guard"], check=False).returncode != 0
    assert kernel.listing("table", "inet", "psiphon_guard") == listing


def test_the_table_goes_with_its_holder_and_comes_with_the_next(kernel: Kernel, holder: Holder) -> None:
    holder.hold()
    assert holder.call("ready").returncode == 0
    holder.end()
    assert not kernel.tables()
    holder.hold()
    assert holder.call("ready").returncode == 0


@pytest.mark.requirement("R3")
def test_a_reload_replaces_the_table_in_one_transaction(kernel: Kernel, holder: Holder) -> None:
    holder.hold()
    assert holder.call("ready").returncode == 0
    before = handle(kernel)
    other = build_wire_guard(Identity(uid=64191, gid=64191, network_manager_uids=(0,)))
    holder.write(other)
    generation = kernel.with_netlink(lambda netlink: netlink.read_generation())
    done = holder.call("reload", str(holder.rules))
    assert done.returncode == 0, done.stderr
    # One commit, so there was no moment without a table.
    assert kernel.with_netlink(lambda netlink: netlink.read_generation()) == generation + 1
    assert handle(kernel) != before
    listing = kernel.listing("table", "inet", "psiphon_guard")
    assert "skuid 64191" in listing
    assert "skuid 64190" not in listing
    assert holder.call("ready").returncode == 0


@pytest.mark.requirement("R1", "R2", "B3")
def test_a_holder_that_is_slow_to_begin_is_waited_for_and_not_ended(kernel: Kernel, holder: Holder) -> None:
    """systemd ends and restarts a unit that is not ready in time, so the guard would be gone just as long again."""
    holder.use_slow_nft()
    holder.hold()
    assert holder.call("ready").returncode == 0
    assert "psiphon-user, TCP and UDP" in kernel.listing("table", "inet", "psiphon_guard")


@pytest.mark.requirement("R1")
def test_rules_that_do_not_load_leave_those_from_before(kernel: Kernel, holder: Holder) -> None:
    holder.hold()
    assert holder.call("ready").returncode == 0
    before = handle(kernel)
    holder.rules.write_text("nonsense\n")
    holder.be_impatient()
    done = holder.call("reload", str(holder.rules))
    assert done.returncode == 1
    assert "the previous one stands" in done.stderr
    assert handle(kernel) == before
    assert holder.process is not None
    assert holder.process.poll() is None


def test_a_table_that_nobody_owns_is_in_nobodys_way(kernel: Kernel, holder: Holder) -> None:
    kernel.nft("table inet psiphon_guard {\n chain nonsense {\n }\n}\n")
    holder.hold()
    assert holder.call("ready").returncode == 0
    assert "nonsense" not in kernel.listing("table", "inet", "psiphon_guard")


def test_rules_that_do_not_load_are_not_called_ready(kernel: Kernel, holder: Holder) -> None:
    holder.be_impatient()
    holder.rules.write_text("nonsense\n")
    holder.hold()
    done = holder.call("ready")
    assert done.returncode == 1
    assert "not loaded" in done.stderr
    # A table without an owner does not hold.
    kernel.nft("table inet psiphon_guard {\n}\n")
    assert holder.call("ready").returncode == 1


def test_the_probe_says_whether_tables_can_be_owned_and_leaves_nothing(kernel: Kernel, holder: Holder) -> None:
    can = kernel.accepts("add table inet scratch { flags owner; }\n")
    assert (holder.call("probe").returncode == 0) == can
    assert not kernel.tables()


def test_without_owned_tables_the_probe_says_so(kernel: Kernel, holder: Holder, tmp_path: Path) -> None:
    # An nft that does not know the flag, like Debian 11's.
    old = tmp_path / "old"
    old.mkdir()
    (old / "nft").write_text("#!/bin/sh\nexit 1\n")
    (old / "nft").chmod(0o755)
    script = tmp_path / "guard"
    script.write_text(script.read_text().replace("PATH=/usr/sbin", f"PATH={old}:/usr/sbin"))
    done = holder.call("probe")
    assert done.returncode == 1
    assert "the other layers hold" in done.stderr


@pytest.mark.requirement("B4")
def test_the_holder_guards_the_frames_of_every_card_that_the_machine_has_now(kernel: Kernel, holder: Holder) -> None:
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    for name in ("card0", "inner0"):
        (holder.cards / name).mkdir(parents=True)
    (holder.cards / "card0" / "device").touch()
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: "netdev psiphon_frames" in "".join(kernel.tables()), "the frame guard")
    listing = kernel.listing("table", "netdev", "psiphon_frames")
    assert "card0" in listing
    assert "inner0" not in listing
    assert "flags owner" in listing
    kernel.host.run(["nft", "flush", "ruleset"])
    assert "card0" in kernel.listing("table", "netdev", "psiphon_frames")
    (holder.cards / "card1" / "device").mkdir(parents=True)
    assert holder.call("reload", str(holder.rules)).returncode == 0
    wait_until(lambda: "card1" in kernel.listing("table", "netdev", "psiphon_frames"), "the second card")


def test_a_frame_guard_that_the_kernel_refuses_costs_the_wire_guard_nothing(kernel: Kernel, holder: Holder) -> None:
    (holder.cards / "card0" / "device").mkdir(parents=True)
    (holder.rules.parent / "frames.nft").write_text("nonsense\n")
    holder.be_patient()
    holder.hold()
    done = holder.call("ready")
    assert done.returncode == 0
    assert "the frame guard was not loaded (" in done.stderr, (
        "nobody waits for what is refused, and the reason is given"
    )
    assert "syntax error" in done.stderr
    assert "psiphon_frames" not in "".join(kernel.tables())


def read_frames(kernel: Kernel) -> str:
    return kernel.host.run(["nft", "list", "table", "netdev", "psiphon_frames"], check=False).stdout


def put_cards(holder: Holder, *names: str, type: str = "1") -> None:
    for name in names:
        (holder.cards / name / "device").mkdir(parents=True)
        (holder.cards / name / "type").write_text(f"{type}\n")


@pytest.mark.requirement("R1", "B4")
@pytest.mark.parametrize("name", [name.decode() for name in hostile.KNOWN if name.isascii()])
def test_a_card_with_a_hostile_name_is_no_piece_of_a_rule_and_costs_no_other_its_guard(
    kernel: Kernel, holder: Holder, name: str
) -> None:
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    put_cards(holder, "card0", name)
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: "on_card0" in read_frames(kernel), "the frame guard")
    listing = read_frames(kernel)
    assert listing.count("hook egress") == 1
    assert re.findall(r"chain (on_.*) \{", (holder.rules.parent / "cards.nft").read_text()) == ["on_card0"]


@pytest.mark.requirement("B4")
def test_a_card_that_is_refused_costs_only_itself(kernel: Kernel, holder: Holder, tmp_path: Path) -> None:
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    put_cards(holder, "card0", "gone0")
    holder.use_nft_that_refuses('"gone0"')
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: "on_card0" in read_frames(kernel), "the frame guard")
    assert "gone0" not in read_frames(kernel)


EARLY = ("netdev", "psiphon_egress")


def read_early(kernel: Kernel) -> str:
    return kernel.host.run(["nft", "list", "table", *EARLY], check=False).stdout


@pytest.mark.requirement("R2", "B4")
def test_before_any_unit_the_cards_are_guarded_in_the_place_where_the_daemon_puts_its_own_guard(
    kernel: Kernel, holder: Holder
) -> None:
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    put_cards(holder, "card0")
    # Or the kernel itself would send.
    kernel.host.set_sysctls({f"ipv6/conf/{name}/disable_ipv6": 1 for name in ("card0", "card1")})
    send = "import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('card0', 0)); s.send(%r)"
    raw = send % (b"\xff" * 6 + b"\x02PS\0\x0a\x10" + b"\x88\xb5" + b"x" * 46)
    kernel.ip("link", "set", "card0", "up")
    kernel.ip("link", "set", "card1", "up")

    def count_sent() -> int:
        """Frames that reached the other end."""
        before = int(kernel.host.run(["cat", "/sys/class/net/card1/statistics/rx_packets"]).stdout)
        kernel.host.run([sys.executable, "-c", raw], check=False)
        return int(kernel.host.run(["cat", "/sys/class/net/card1/statistics/rx_packets"]).stdout) - before

    assert count_sent() == 1, "the positive control"
    done = holder.call("early", str(holder.rules))
    assert (done.returncode, done.stderr) == (0, "")
    assert "on_card0" in read_early(kernel)
    assert "flags owner" not in read_early(kernel)
    assert count_sent() == 0
    # The holder comes beside it; the daemon's own table replaces it.
    holder.hold()
    assert holder.call("ready").returncode == 0
    assert "on_card0" in read_early(kernel)
    egress = build_egress_guard(IDENTITY, parse_names("card1"))
    assert egress is not None
    kernel.nft(egress.render_replacement())
    assert "on_card0" not in read_early(kernel)


@pytest.mark.requirement("R2", "B4")
@pytest.mark.parametrize("trouble", ["no hook", "damaged", "missing", "one card"])
def test_what_the_kernel_refuses_before_any_unit_leaves_no_table_that_only_looks_like_a_guard(
    kernel: Kernel, holder: Holder, trouble: str
) -> None:
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    put_cards(holder, "card0", *(["gone0"] if trouble == "one card" else []))
    if trouble == "no hook":
        holder.use_nft_without_the_egress_hook()
    elif trouble == "damaged":
        (holder.rules.parent / "frames.nft").write_text("")
    elif trouble == "missing":
        (holder.rules.parent / "frames.nft").unlink()
    done = holder.call("early", str(holder.rules))
    if trouble == "one card":
        assert done.returncode == 0
        assert "on_card0" in read_early(kernel)
    else:
        assert done.returncode == 1
        assert "raw frames of root are not stopped until the guard stands" in done.stderr
        assert read_early(kernel) == ""


@pytest.mark.requirement("B4")
def test_more_cards_than_a_chain_takes_are_guarded_all_of_them(kernel: Kernel, holder: Holder) -> None:
    """A netdev chain takes 256 devices (NFT_NETDEVICE_MAX): server cards have more virtual functions."""
    names = [f"card{number}" for number in range(300)]
    kernel.ip("link", "add", "below", "type", "veth", "peer", "name", "far")
    kernel.ip_batch(f"link add link below name {name} type macvlan mode bridge" for name in names)
    put_cards(holder, *names)
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: "on_card299" in read_frames(kernel), "the frame guard")
    assert read_frames(kernel).count("hook egress") == 300


def test_a_card_without_ethernet_frames_is_not_asked_for_their_header(kernel: Kernel, holder: Holder) -> None:
    """Otherwise no frame of a modem (ARPHRD_RAWIP) would pass, not even the core's."""
    kernel.ip("link", "add", "wwan0", "type", "veth", "peer", "name", "far")
    put_cards(holder, "wwan0", type="519")
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: "on_wwan0" in read_frames(kernel), "the frame guard")
    hook = kernel.listing("chain", "netdev", "psiphon_frames", "on_wwan0")
    assert "goto frames_without_header" in hook


@pytest.mark.requirement("B4")
def test_a_frame_guard_that_is_refused_fails_the_reload_with_the_reason_and_the_rest_is_loaded(
    kernel: Kernel, holder: Holder
) -> None:
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    put_cards(holder, "card0")
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: "on_card0" in read_frames(kernel), "the frame guard")
    frames, before = read_frames(kernel), handle(kernel)
    (holder.rules.parent / "frames.nft").write_text("nonsense\n")
    write_bridges(holder, "virbr0")
    done = holder.call("reload", str(holder.rules))
    assert done.returncode == 1
    assert "the frame guard was not: " in done.stderr
    assert "nonsense" in done.stderr or "syntax error" in done.stderr, "the reason"
    assert read_frames(kernel) == frames, "the previous one stands"
    assert handle(kernel) != before, "the wire guard was loaded again all the same"
    assert kernel.host.run(["nft", *BRIDGE_TABLE], check=False).returncode == 0, "and the bridges with it"


@pytest.mark.requirement("B4")
def test_a_frame_guard_that_is_taken_but_not_loaded_fails_the_reload(kernel: Kernel, holder: Holder) -> None:
    """For lack of memory, for example: what the check accepted a moment ago does not load."""
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    put_cards(holder, "card0")
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: "on_card0" in read_frames(kernel), "the frame guard")
    holder.be_impatient()
    (holder.rules.parent / "frames.nft").write_text("nonsense\n")
    holder.use_nft_that_takes_all()
    done = holder.call("reload", str(holder.rules))
    assert done.returncode == 1
    assert "the frame guard was not; read the log" in done.stderr


@pytest.mark.requirement("B4")
def test_a_kernel_without_the_hook_reloads_without_complaint(kernel: Kernel, holder: Holder) -> None:
    kernel.ip("link", "add", "card0", "type", "veth", "peer", "name", "card1")
    put_cards(holder, "card0")
    holder.use_nft_that_refuses("hook egress")
    holder.hold()
    assert holder.call("ready").returncode == 0
    done = holder.call("reload", str(holder.rules))
    assert done.returncode == 0, done.stderr


BRIDGE_TABLE = ("list", "table", "bridge", "psiphon_bridges")


def write_bridges(holder: Holder, *names: str) -> None:
    holder.rules.with_name("bridges.nft").write_text(render_bridge_rules(IDENTITY, parse_names(*names)))


@pytest.mark.requirement("B3")
def test_allowed_bridges_come_with_their_guard_and_go_with_it(kernel: Kernel, holder: Holder) -> None:
    write_bridges(holder)
    holder.hold()
    assert holder.call("ready").returncode == 0
    plain = kernel.listing(*ADDRESS[1:])
    assert "oifkind" not in plain
    assert kernel.host.run(["nft", *BRIDGE_TABLE], check=False).returncode != 0
    write_bridges(holder, "virbr0")
    done = holder.call("reload", str(holder.rules))
    assert done.returncode == 0, done.stderr
    assert 'oifname "virbr0" meta oifkind "bridge"' in kernel.listing(*ADDRESS[1:])
    assert "flags owner" in kernel.listing(*BRIDGE_TABLE[1:])
    kernel.host.run(["nft", "flush", "ruleset"])
    assert "oifkind" in kernel.listing(*BRIDGE_TABLE[1:])
    # Again with both tables, and with a new holder.
    assert holder.call("reload", str(holder.rules)).returncode == 0
    holder.end()
    holder.hold()
    wait_until(lambda: kernel.host.run(["nft", *BRIDGE_TABLE], check=False).returncode == 0, "the bridge guard")
    assert "oifkind" in kernel.listing(*ADDRESS[1:])
    write_bridges(holder)
    done = holder.call("reload", str(holder.rules))
    assert done.returncode == 0, done.stderr
    assert kernel.listing(*ADDRESS[1:]) == plain
    assert kernel.host.run(["nft", *BRIDGE_TABLE], check=False).returncode != 0


@pytest.mark.requirement("B3", "R1")
def test_where_the_kernel_takes_no_bridge_guard_the_wire_guard_stands_that_knows_no_bridge(
    kernel: Kernel, holder: Holder
) -> None:
    write_bridges(holder, "virbr0")
    path = holder.rules.with_name("bridges.nft")
    path.write_text(path.read_text().replace("hook postrouting priority 300", "hook nowhere priority 300"))
    holder.hold()
    assert holder.call("ready").returncode == 0
    holder.be_impatient()
    done = holder.call("reload", str(holder.rules))
    assert done.returncode != 0
    assert "allowed bridges were not loaded" in done.stderr
    assert "oifkind" not in kernel.listing(*ADDRESS[1:])
    assert kernel.host.run(["nft", *BRIDGE_TABLE], check=False).returncode != 0


def test_whether_the_kernel_takes_bridges_is_asked_beside_the_guard_that_stands(kernel: Kernel, holder: Holder) -> None:
    """As `psiphon-vpn bridge allow` asks before it writes anything."""
    write_bridges(holder, "virbr0")
    holder.hold()
    assert holder.call("ready").returncode == 0
    text = render_bridge_rules(IDENTITY, parse_names("virbr0", "br-1"))
    assert kernel.host.call(lambda: LinuxKernel().check_rules(text)) is None
    refused = kernel.host.call(lambda: LinuxKernel().check_rules(text.replace("oifkind", "oifnothing")))
    assert refused is not None
    assert "oifnothing" in refused
