# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What removal and release take out of a real kernel: everything of the service, and nothing else."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest
from tests.integration.kernel import Kernel
from tests.integration.test_routing import OPEN, RULES, make_tun
from tests.lock_reading import read_lock
from tests.policies import IDENTITY

from psiphon_lab.waiting import wait_until
from psiphon_vpn.errors import UserError
from psiphon_vpn.linux.routes import apply_routes, apply_rules
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.traffic import NetlinkTraffic, Traffic
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.policy.traffic_control import Filter
from psiphon_vpn.policy.values import parse_names
from psiphon_vpn.run import CommandError
from psiphon_vpn.system import linux_platform
from psiphon_vpn.system.configure import render_rules
from psiphon_vpn.system.linux_platform import LinuxKernel, find_own_rule
from psiphon_vpn.system.platform import Account

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R3")]

FOREIGN = "table inet somebody { chain output { type filter hook output priority 5; policy accept; counter; }; }"
AMONG_OURS = (
    # In the same places as ours, but not ours. The daemon removes such rules while it runs.
    ("5072", "table", "main"),
    ("5075", "uidrange", "7-7", "table", "100"),
    ("5076", "table", "100"),
)
RULES_TEXT = render_rules(Account(uid=IDENTITY.uid, gid=IDENTITY.gid), network_managers=IDENTITY.network_manager_uids)


def read_state(kernel: Kernel) -> tuple[str, ...]:
    return (
        kernel.listing("ruleset"),
        *(kernel.ip(version, "rule") for version in ("-4", "-6")),
        *(kernel.ip(version, "route", "show", "table", "all") for version in ("-4", "-6")),
        kernel.ip("-br", "link"),
        kernel.host.run(["tc", "qdisc"]).stdout,
    )


def put_filter(kernel: Kernel, name: str) -> None:
    """Put the daemon's filter at a card's traffic control."""
    index = int(kernel.host.run(["cat", f"/sys/class/net/{name}/ifindex"]).stdout)

    async def work(socket: RouteSocket) -> None:
        traffic = Traffic(NetlinkTraffic(socket))
        await traffic.fit({index: Filter.MARKED})
        assert traffic.standings[index].filter is Filter.MARKED

    kernel.with_routes(work)


def furnish(kernel: Kernel) -> None:
    """Add tables, rules and links that belong to somebody else."""
    kernel.ip("link", "set", "lo", "up")
    kernel.ip("link", "add", "wire", "type", "veth", "peer", "name", "beyond")
    for name in ("wire", "beyond"):
        # Link-local addresses would come at some later moment.
        kernel.ip("link", "set", name, "addrgenmode", "none")
    kernel.ip("link", "set", "beyond", "up")
    kernel.ip("link", "set", "wire", "up")
    kernel.ip("address", "add", "192.0.2.2/24", "dev", "wire")
    kernel.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.1", "table", "100")
    for version in ("-4", "-6"):
        kernel.ip(version, "rule", "add", "priority", "5000", "table", "100")
    kernel.nft(FOREIGN)


def put_everything(kernel: Kernel) -> None:
    """Put everything there that boot lock and daemon make."""
    index = make_tun(kernel)

    async def work(socket: RouteSocket) -> None:
        await apply_rules(socket, RULES)
        await apply_routes(socket, OPEN, index)

    kernel.with_routes(work)
    kernel.nft(build_base_table(Policy(state=State.LOCKED, identity=IDENTITY)).render_replacement())
    egress = build_egress_guard(IDENTITY, parse_names("wire"))
    assert egress is not None
    kernel.nft(egress.render_replacement())
    kernel.nft(build_arp_table().render_replacement())
    put_filter(kernel, "wire")
    for name in names.SCRATCH_TABLES:  # left by a daemon that was killed while it read back
        kernel.nft(egress.render(name=name, flags="dormant"))
        kernel.nft(build_arp_table().render(name=name, flags="dormant"))


def change_rules(kernel: Kernel, verb: str) -> None:
    for version in ("-4", "-6"):
        for priority, *words in AMONG_OURS:
            kernel.ip(version, "rule", verb, "priority", priority, *words)


def test_removal_leaves_the_kernel_as_it_was_and_other_programs_alone(kernel: Kernel) -> None:
    furnish(kernel)
    before = read_state(kernel)
    put_everything(kernel)
    during = read_state(kernel)
    assert all(one != other for one, other in zip(before, during, strict=True))
    change_rules(kernel, "add")
    kernel.host.call(LinuxKernel().remove_routing)
    change_rules(kernel, "del")  # fails if one of them is gone
    assert kernel.host.call(LinuxKernel().is_locked) is True, "the routing goes while the tables are still loaded"
    kernel.host.call(LinuxKernel().remove_tables)
    assert read_state(kernel) == before
    # Once more, when nothing is left.
    kernel.host.call(LinuxKernel().remove_routing)
    kernel.host.call(LinuxKernel().remove_tables)


def test_without_a_guard_that_marks_the_filter_is_named_and_removal_takes_it_first(kernel: Kernel) -> None:
    furnish(kernel)
    before = read_state(kernel)
    put_everything(kernel)
    assert read_lock(kernel.host).layers["traffic_control"]["state"] == "ok"
    kernel.nft("flush ruleset")
    reported = read_lock(kernel.host).layers["traffic_control"]
    assert reported["state"] == "broken"
    assert "wire" in reported["detail"]
    kernel.host.call(LinuxKernel().remove_routing)
    kernel.host.call(LinuxKernel().remove_tables)
    kernel.nft(FOREIGN)
    assert read_state(kernel) == before


def test_tables_stay_where_a_filter_cannot_be_taken_away(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter without its guard would let nothing out of this machine any more, released or not."""
    furnish(kernel)
    put_everything(kernel)

    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(linux_platform, "remove_filters", refuse)
    with pytest.raises(UserError, match="was not opened"):
        kernel.host.call(LinuxKernel().remove_tables)
    assert names.EGRESS_TABLE in kernel.listing("tables")
    assert kernel.host.call(LinuxKernel().is_locked) is True


def test_a_device_of_another_kind_that_has_the_tuns_name_stays(kernel: Kernel) -> None:
    kernel.ip("link", "add", names.TUN_NAME, "type", "veth", "peer", "name", "beyond")
    kernel.host.call(LinuxKernel().remove_routing)
    assert names.TUN_NAME in kernel.ip("-br", "link")


def test_tables_cannot_be_removed_under_a_holder_and_that_is_no_success(kernel: Kernel, tmp_path: Path) -> None:
    guard = tmp_path / "guard.nft"
    guard.write_text(RULES_TEXT.guard)
    kernel.nft(RULES_TEXT.boot)
    holder = kernel.host.spawn(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert holder.stdin is not None
        holder.stdin.write(f'include "{guard}"\n'.encode())
        holder.stdin.flush()
        wait_for_guard(kernel)
        with pytest.raises(CommandError):
            kernel.host.call(LinuxKernel().remove_tables)
        assert kernel.host.call(LinuxKernel().is_locked) is True
    finally:
        holder.kill()
        holder.wait()
        if holder.stdin is not None:
            holder.stdin.close()


def wait_for_guard(kernel: Kernel) -> None:
    wait_until(lambda: any(names.GUARD_TABLE in line for line in kernel.tables()), "the wire guard")


def test_the_rendered_rules_are_ones_that_the_kernel_takes_and_a_check_changes_nothing(kernel: Kernel) -> None:
    for text in (RULES_TEXT.boot, RULES_TEXT.drop, RULES_TEXT.guard):
        assert kernel.host.call(functools.partial(LinuxKernel().check_rules, text)) is None
    assert kernel.host.call(lambda: LinuxKernel().check_rules("table inet x { nonsense }")) is not None
    assert kernel.tables() == []


@pytest.mark.parametrize("state", ["boot", "drop"])
def test_what_is_loaded_at_boot_locks_and_replaces_what_the_daemon_had(kernel: Kernel, state: str) -> None:
    kernel.nft(build_base_table(Policy(state=State.CONNECTING, identity=IDENTITY)).render_replacement())
    kernel.nft(getattr(RULES_TEXT, state))
    assert kernel.host.call(LinuxKernel().is_locked) is True
    assert sum(names.BASE_TABLE in line for line in kernel.tables()) == 1


def test_a_rule_of_somebody_else_is_not_taken_for_ours() -> None:
    assert find_own_rule({"priority": 5072, "src": "all", "table": "main"}) is None
    assert find_own_rule({"priority": 5076, "src": "all", "table": "100"}) is None
    assert find_own_rule({"priority": 100, "src": "all", "table": str(names.ROUTE_TABLE)}) is None
    ours = {"priority": 5073, "src": "all", "ipproto": "ipproto-17", "dport": 67, "table": "main"}
    assert find_own_rule(ours) == "priority 5073 table main ipproto 17 dport 67".split()
