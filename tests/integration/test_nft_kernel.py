# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rulesets in the kernel: they load, they are read back, and every change is noticed."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tests.integration.kernel import Kernel
from tests.policies import IDENTITY, LINKS, golden_rulesets, golden_tables, make_policy

from psiphon_vpn.linux.features import Features, probe_features
from psiphon_vpn.linux.images import Images
from psiphon_vpn.linux.lockstate import LockState, read_lock_state
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nft import Nft, RulesetError, load_text
from psiphon_vpn.linux.tables import Tables
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard, build_wire_guard
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.ruleset import Rule, Table
from psiphon_vpn.policy.values import parse_names
from psiphon_vpn.run import CommandError

pytestmark = pytest.mark.lab
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
BASE = build_base_table(make_policy(State.OPEN))
ARP = build_arp_table()


def _egress() -> Table:
    guard = build_egress_guard(IDENTITY, parse_names("lo"))
    assert guard is not None
    return guard


EGRESS = _egress()
FOREIGN = 'table inet docker {\n\tchain c {\n\t\tip saddr 172.17.0.0/16 accept comment "theirs"\n\t}\n}\n'
TABLE = f"inet {names.BASE_TABLE}"

CHANGES = {
    "a rule is deleted": f"delete rule {TABLE} output handle HANDLE",
    "a rule is inserted": f"insert rule {TABLE} output accept",
    "a rule is added at the end": f"add rule {TABLE} to_wire accept",
    "a rule is replaced": f"replace rule {TABLE} output handle HANDLE accept",
    "the policy of a chain is changed": f"add chain {TABLE} output {{ policy accept ; }}",
    "a chain is flushed": f"flush chain {TABLE} output",
    "a chain is added": f"add chain {TABLE} extra {{ type filter hook output priority -400 ; }}",
    "a set is added": f"add set {TABLE} extra {{ type ipv4_addr ; }}",
    "an object is added": f"add counter {TABLE} extra",
    "the table is put to sleep": f"add table {TABLE} {{ flags dormant ; }}",
    "the table is flushed": f"flush table {TABLE}",
    "the table is deleted": f"delete table {TABLE}",
    "the whole ruleset is flushed": "flush ruleset",
}


def first_handle(kernel: Kernel) -> str:
    lines = kernel.host.run(["nft", "-a", "list", "chain", *TABLE.split(), "output"]).stdout.splitlines()
    return next(line for line in lines if " accept" in line).rsplit(" ", 1)[1]


def lock_state(kernel: Kernel) -> LockState:
    return kernel.host.call(read_lock_state)


@pytest.mark.defect(3)
@pytest.mark.requirement("R4", "R22")
def test_every_reviewed_ruleset_loads(kernel: Kernel) -> None:
    paths = sorted(GOLDEN.glob("*.nft"))
    assert {path.stem for path in paths} == set(golden_rulesets())
    for path in paths:
        kernel.host.run(["nft", "-f", path])
        kernel.host.run(["nft", "-f", path]) if path.stem not in {"wire_guard", "frame_guard"} else None


@pytest.mark.requirement("R4", "R16")
def test_the_kill_switch_explains_itself_by_the_command_of_the_policy(kernel: Kernel) -> None:
    kernel.nft(BASE.render_replacement())
    listing = kernel.listing("chain", "inet", "psiphon_filter", "output")
    assert "hook output priority filter; policy drop;" in listing
    assert 'comment "everything else is a wire: only what chain to_wire lists may leave"' in listing


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("name", sorted(golden_tables()))
def test_every_table_reads_back_as_what_it_was_loaded_from(kernel: Kernel, name: str) -> None:
    table = golden_tables()[name]

    async def work(nft: Nft) -> None:
        await nft.replace(table)
        await nft.verify([table])
        await nft.replace(table)
        await nft.verify([table])

    kernel.with_nft(work)
    assert kernel.tables() == [f"table {TABLE}"]


@pytest.mark.requirement("B3", "R4")
@pytest.mark.parametrize("what", CHANGES)
def test_it_is_noticed_when(kernel: Kernel, what: str) -> None:
    async def work(nft: Nft) -> None:
        await nft.replace(BASE)
        await nft.verify([BASE])
        kernel.nft(CHANGES[what].replace("HANDLE", first_handle(kernel)))
        with pytest.raises(RulesetError):
            await nft.verify([BASE])
        await nft.replace(BASE)
        await nft.verify([BASE])

    kernel.with_nft(work)


@pytest.mark.requirement("B3", "R4")
@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("when", ["before it is loaded", "before it is read"])
def test_a_table_that_somebody_changes_as_it_is_loaded_is_not_taken_for_what_was_loaded(
    kernel: Kernel, when: str, neighbours: bool
) -> None:
    """Nothing is known of the table yet: it must be compared with what the text says, whoever commits meanwhile."""

    async def work(netlink: NftSocket) -> None:
        disturbed = True

        async def load_and_be_changed(text: str) -> None:
            if disturbed and when == "before it is loaded":
                kernel.nft(FOREIGN)
            await load_text(text)
            if not disturbed:
                return
            if neighbours:
                kernel.nft("add table inet docker")
            # Everybody may use the wire. Compared with the policy, the table has as many rules, and the same
            # interfaces, addresses and verdicts.
            lines = kernel.host.run(["nft", "-a", "list", "chain", *TABLE.split(), "to_wire"]).stdout.splitlines()
            handle = next(line for line in lines if "ct mark set" in line).rsplit(" ", 1)[1]
            kernel.nft(f'replace rule {TABLE} to_wire handle {handle} oifname "eth0" accept')

        images = Images(netlink)
        nft = Nft(netlink, images=images, load=load_and_be_changed)
        await nft.replace(BASE)
        disturbed = False
        with pytest.raises(RulesetError):
            await nft.verify([BASE])
        assert images.find(BASE) is None
        kernel.nft(FOREIGN)
        await nft.replace(BASE)
        kernel.nft("delete table inet docker")
        await nft.verify([BASE])
        assert not any(name in table for table in kernel.tables() for name in names.SCRATCH_TABLES)

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


def test_counters_and_elements_that_come_and_go_are_no_change(kernel: Kernel) -> None:
    async def work(nft: Nft) -> None:
        await nft.replace(BASE)
        kernel.nft(f'add element {TABLE} {names.LEASE_SET} {{ "lo" timeout 60s }}')
        await nft.verify([BASE])
        kernel.nft("reset counters")
        await nft.verify([BASE])

    kernel.with_nft(work)


@pytest.mark.defect(2)
@pytest.mark.requirement("R3", "B3")
def test_replacing_our_table_leaves_other_programs_tables_alone(kernel: Kernel) -> None:
    """Defect 2 of a comparable service."""
    kernel.nft(FOREIGN)
    before = kernel.listing("table", "inet", "docker")

    async def work(nft: Nft) -> None:
        for name in ("boot", "open", "locked", "drop_only"):
            await nft.replace(golden_tables()[name])
            await nft.verify([golden_tables()[name]])
        await nft.remove("netdev", names.EGRESS_TABLE)

    kernel.with_nft(work)
    assert kernel.listing("table", "inet", "docker") == before
    assert sorted(kernel.tables()) == sorted(["table inet docker", f"table {TABLE}"])


def with_bad_rule(table: Table) -> Table:
    first, *rest = table.chains
    broken = replace(first, rules=(*first.rules, Rule(text="this is no rule")))
    return replace(table, chains=(broken, *rest))


@pytest.mark.defect(1, 3)
@pytest.mark.requirement("R1", "R2", "R24")
@pytest.mark.parametrize("before", [None, BASE], ids=["nothing before", "open before"])
def test_a_policy_that_does_not_load_leaves_a_table_that_drops_everything(kernel: Kernel, before: Table | None) -> None:
    async def put(netlink: NftSocket) -> None:
        tables = Tables(netlink)
        if before is not None:
            await tables.put(before, EGRESS)
            assert tables.in_force
        with pytest.raises(RulesetError):
            await tables.put(with_bad_rule(BASE), EGRESS)
        assert not tables.in_force
        with pytest.raises(RulesetError, match="no policy is in force"):
            await tables.check()

    kernel.with_netlink(lambda netlink: asyncio.run(put(netlink)))
    listing = kernel.listing("table", *TABLE.split())
    assert listing.count("policy drop;") == 4
    accepting = [line.strip() for line in listing.splitlines() if "accept" in line]
    assert accepting == ['oif "lo" accept', 'iif "lo" accept', 'oif "lo" accept']
    assert lock_state(kernel).locked


def test_the_next_policy_that_loads_is_in_force_again(kernel: Kernel) -> None:
    async def put(netlink: NftSocket) -> None:
        tables = Tables(netlink)
        with pytest.raises(RulesetError):
            await tables.put(with_bad_rule(BASE))
        await tables.put(BASE)
        assert tables.in_force
        assert tables.is_current()

    kernel.with_netlink(lambda netlink: asyncio.run(put(netlink)))


def test_putting_the_same_policy_again_commits_nothing(kernel: Kernel) -> None:
    async def put(netlink: NftSocket) -> None:
        tables = Tables(netlink)
        await tables.put(BASE, EGRESS, ARP)
        generation = netlink.read_generation()
        await tables.put(BASE, EGRESS, ARP)
        assert netlink.read_generation() == generation
        assert await tables.check() == generation

    kernel.with_netlink(lambda netlink: asyncio.run(put(netlink)))


@pytest.mark.requirement("B3", "B4")
@pytest.mark.parametrize("table", [TABLE, f"netdev {names.EGRESS_TABLE}", f"arp {names.ARP_TABLE}"])
def test_a_table_that_is_gone_is_noticed_and_put_back(kernel: Kernel, table: str) -> None:
    async def put(netlink: NftSocket) -> None:
        tables = Tables(netlink)
        await tables.put(BASE, EGRESS, ARP)
        kernel.nft(f"delete table {table}")
        assert not tables.is_current()
        with pytest.raises(RulesetError):
            await tables.check()
        await tables.put(BASE, EGRESS, ARP)
        await tables.check()

    kernel.with_netlink(lambda netlink: asyncio.run(put(netlink)))
    assert f"table {table}" in kernel.tables()


def test_a_commit_of_another_program_elsewhere_is_looked_at_and_found_harmless(kernel: Kernel) -> None:
    async def put(netlink: NftSocket) -> None:
        tables = Tables(netlink)
        await tables.put(BASE, EGRESS, ARP)
        kernel.nft(FOREIGN)
        assert not tables.is_current()
        await tables.check()
        assert tables.is_current()

    kernel.with_netlink(lambda netlink: asyncio.run(put(netlink)))


@pytest.mark.requirement("R22")
def test_this_kernels_features_are_found_and_nothing_is_left_behind(kernel: Kernel) -> None:
    features = kernel.host.call(lambda: asyncio.run(probe_features()))
    assert [field.name for field in fields(features) if not getattr(features, field.name)] == []
    assert features.missing == ()
    assert kernel.tables() == []


@pytest.mark.requirement("R22")
def test_processes_that_try_this_kernel_at_the_same_time_find_nothing_missing(kernel: Kernel) -> None:
    async def probe() -> list[Features | BaseException]:
        return await asyncio.gather(*(probe_features() for _number in range(2)), return_exceptions=True)

    answers = [answer for _time in range(3) for answer in kernel.host.call(lambda: asyncio.run(probe()))]
    # One that was disturbed each time says that it does not know. That is no wrong answer.
    found = [answer for answer in answers if not isinstance(answer, CommandError)]
    assert found
    assert all(isinstance(answer, Features) and answer.missing == () for answer in found)
    assert kernel.tables() == []


# -- locked or not, read from the kernel ---------------------------------------------------------------------------


def test_without_any_table_the_machine_is_not_locked(kernel: Kernel) -> None:
    state = lock_state(kernel)
    assert state.locked is False
    assert {name: layer["state"] for name, layer in state.layers.items()} == {
        "base": "missing", "wire_guard": "missing", "egress_guard": "missing", "lease": "missing",
        "traffic_control": "missing",
    }  # fmt: skip


@pytest.mark.requirement("R2", "R4")
@pytest.mark.parametrize("name", sorted(golden_tables()))
def test_with_any_of_our_tables_the_machine_is_locked(kernel: Kernel, name: str) -> None:
    kernel.nft(golden_tables()[name].render_replacement())
    state = lock_state(kernel)
    assert state.locked is True
    assert state.layers["base"]["state"] == "ok"


@pytest.mark.requirement("B2")
def test_a_lease_is_seen_with_what_remains_of_it(kernel: Kernel) -> None:
    kernel.nft(BASE.render_replacement())
    kernel.nft(f'add element {TABLE} {names.LEASE_SET} {{ "{names.TUN_NAME}" timeout 60s }}')
    state = lock_state(kernel)
    assert state.locked is True, "the tunnel is open, and no wire"
    assert state.lease_seconds is not None
    assert 50 <= state.lease_seconds <= 60


@pytest.mark.requirement("B3")
def test_the_wire_guard_alone_locks(kernel: Kernel) -> None:
    kernel.nft(replace(build_wire_guard(IDENTITY), flags="").render_replacement())
    state = lock_state(kernel)
    assert state.locked is True
    assert (state.layers["base"]["state"], state.layers["wire_guard"]["state"]) == ("missing", "ok")


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    "change",
    [
        f"add chain {TABLE} output {{ policy accept ; }} ; flush chain {TABLE} output",
        f"add table {TABLE} {{ flags dormant ; }}",
        f"insert rule {TABLE} output accept",
        f'insert rule {TABLE} output oifname "eth0" accept',
        f'insert rule {TABLE} output oifname "eth*" accept',
        f"insert rule {TABLE} output meta skuid 1000 accept",
        f"insert rule {TABLE} output ip daddr 9.9.9.9 accept",
        f"insert rule {TABLE} output tcp dport vmap {{ 443 : accept }}",
        f"insert rule {TABLE} output meta mark 7 accept",
        f"insert rule {TABLE} to_wire udp dport 53 accept",
        f"insert rule {TABLE} output ct state established accept",
        f"insert rule {TABLE} refused accept",
        f"delete chain {TABLE} output",
        f"flush table {TABLE} ; delete table {TABLE}",
    ],
)
def test_a_lock_with_a_hole_is_not_called_locked(kernel: Kernel, change: str) -> None:
    kernel.nft(build_base_table(make_policy(State.CONNECTING)).render_replacement())
    assert lock_state(kernel).locked is True
    kernel.nft(change.replace(" ; flush", "\nflush").replace(" ; delete", "\ndelete"))
    state = lock_state(kernel)
    assert state.locked is False
    assert state.layers["base"]["state"] in {"broken", "missing"}


@pytest.mark.requirement("B2", "R2")
def test_without_root_the_lock_is_unknown_and_not_guessed(kernel: Kernel) -> None:
    code = "from psiphon_vpn.linux.lockstate import read_lock_state as r; print(r().locked)"
    import sys

    done = kernel.host.run([sys.executable, "-c", code], uid=65534, gid=65534, bounding=())
    assert done.stdout.strip() == "None"


def test_the_links_of_the_golden_files_exist_everywhere() -> None:
    assert LINKS.tun_index == 1
