# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of the demonstration: each changes something on the machine, probes meanwhile, and is judged by frames."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.censored import Censored
from psiphon_lab.commit_watch import CommitWatch
from psiphon_lab.frames import decode_ip
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.list_host import LIST_PATH
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.pages import fetch_page
from psiphon_lab.probe_runner import unseen_probes
from psiphon_lab.provider_censor import ByAddress, ByReset
from psiphon_lab.service_adapter import names
from psiphon_lab.service_adapter.bring_list import write_bundle
from psiphon_lab.socks_client import fetch_by_socks
from psiphon_lab.step import StepJudge, StepResult
from psiphon_vpn.i18n import _

NETWORK = "laboratory"
"""Name of the profile of the laboratory's network."""
KNOWN = ("NL", "DE")
"""Regions of the servers in the list that is brought first."""
DNS_PORT = 53
ALL_MLDV2 = "ff02::16"


class DemoSteps(StepJudge):
    """Plays the steps in order. A step is a method that returns its result."""

    def __init__(self, censored: Censored, machine: Machine, *, announce: Callable[[str], None]) -> None:
        super().__init__(censored.world, machine, censored.internet, announce=announce)
        self._censored = censored

    def play(self) -> Iterator[StepResult]:
        """Play all steps; yields each result at once. Stops after a step that could not be carried out."""
        steps: Sequence[Callable[[], StepResult]] = (
            self._positive_control,
            self._list_brought,
            self._boot_lock,
            self._connecting,
            self._open,
            self._list_refreshed,
            self._server_blocked,
            self._region_changed,
            self._all_servers_blocked,
            self._core_killed,
            self._daemon_killed,
            self._rules_flushed,
            self._uplink_moved,
            self._stopped,
        )
        for step in steps:
            self._mark = self._world.mark()
            identifier = step.__name__.strip("_")
            try:
                result = step()
            except LabError as error:
                result = StepResult(name=identifier.replace("_", " "), done="")
                result.check(_("the step could be carried out"), False, str(error).splitlines()[0][:300])
                yield replace(result, id=identifier)
                return
            yield replace(result, id=identifier)

    # -- the steps --------------------------------------------------------------------------------------------------

    def _positive_control(self) -> StepResult:
        result = StepResult(
            name=_("positive control"), done=_("no lock: every probe, through both providers, must be seen outside")
        )
        self._announce(_("No lock yet: every probe must be seen outside, or its absence later proves nothing."))
        for move, lan in (
            (None, LAN_A),
            (self._world.move_to_provider_b, LAN_B),
            (self._world.move_to_provider_a, None),
        ):
            if move is not None:
                move()
            if lan is None:
                continue
            mark = self._world.mark()
            probes = self._start_probes(lan)
            results = self._collect(probes)
            frames = self._world.frames_since(mark)
            unseen = {spec.id for spec in unseen_probes(probes[0], frames)}
            # The neighbour and A's resolver are unreachable from B, but the attempt is still seen on the wire.
            self._controls |= {spec.id for spec in probes[0]} - unseen
            result.probes += len(probes[0])
            result.frames += len(frames)
            result.outcomes.update(item.outcome for item in results.values())
            shown = ", ".join(sorted(unseen)[:3])
            result.check(
                _("every probe is seen on the wire of {wire}").format(wire=lan.name),
                not unseen,
                shown or f"{len(probes[0])} seen",
            )
        return result

    def _list_brought(self) -> StepResult:
        result = StepResult(
            name=_("list brought"), done=_("before the lock closes, `install` downloads the signed list of servers")
        )
        self._announce(_("No server is known yet. The list is fetched in the open, once. The network sees this:"))
        self._internet.publish(*KNOWN)
        self._machine.bring_list(NETWORK, authority=self._internet.list_host.authority.certificate)
        frames = self._world.frames_since(self._mark)
        others = []
        requests: set[str] = set()
        for verdict in judge_frames(frames, world_evidence()):
            packet = decode_ip(verdict.frame.data)
            if packet is not None and packet.destination_port == DNS_PORT:
                requests.add(_("a query for the name of the list's host"))
            elif packet is not None and packet.destination in {plan.LIST_HOST4, plan.LIST_HOST6}:
                requests.add(_("a connection to the list's host"))
            elif packet is not None and packet.destination == ALL_MLDV2:
                requests.add(_("the kernel's own multicast report"))
            elif verdict.is_leak:
                others.append(f"{verdict.frame.wire}: {verdict.text}")
        result.frames = len(frames)
        result.leaks = others
        shown = ", ".join(sorted(requests))
        result.check(_("the download is seen outside, and nothing else"), not others and len(requests) >= 2, shown)
        served = [line["path"] for line in self._internet.list_host.read_record()]
        result.check(_("the list's host was asked for the list"), served == [f"/{LIST_PATH}"], ", ".join(served))
        return result

    def _boot_lock(self) -> StepResult:
        result = StepResult(name=_("boot lock"), done=_("plain nft loads the base rules; the holder loads the guards"))
        self._announce(_("Boot: nft loads the lock from a file; no daemon runs yet. Probing as root and as a user."))
        self._machine.boot_lock()
        self._machine.hold_guard()
        self._mark = self._world.mark()
        probes = self._start_probes(LAN_A)
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        self._expect_silence(result, found)
        return result

    def _connecting(self) -> StepResult:
        result = StepResult(
            name=_("connecting"), done=_("the daemon starts; the server accepts, but does not answer yet")
        )
        self._announce(_("Connecting: the daemon starts its core, and the server delays its answer. Probing."))
        with self._internet.hold_servers():
            self._machine.start_daemon()
            self._machine.wait_state("CONNECTING")
            probes = self._start_probes(LAN_A)
            found = self._collect(probes)
            status = self._machine.read_status()
            result.check(
                _("the service was connecting meanwhile"), status is not None and status["state"] == "CONNECTING"
            )
        begin = time.monotonic()
        self._machine.wait_state("OPEN")
        result.figures[_("server answers to open, ms")] = (time.monotonic() - begin) * 1000
        # Judged now, because the server has recorded the core's flow by now.
        self._judge(result, [probes], [found])
        self._expect_silence(result, found)
        return result

    def _wait_ipv6(self) -> None:
        self._machine.wait_for(lambda: bool((self._machine.read_status() or {}).get("ipv6")), "IPv6 through the tunnel")

    def _open(self) -> StepResult:
        result = StepResult(name=_("open"), done=_("verified, leased, open: pages and names through the tunnel"))
        self._announce(_("Open: a page must see the server's address, and names must be resolved inside the tunnel."))
        status = self._machine.wait_state("OPEN")
        self._wait_ipv6()
        probes = self._start_probes(LAN_A)
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        self._expect_tunnel(result, found)
        inside = fetch_by_socks(self._world.client, "127.0.0.1", plan.INTERNET4)
        served = self._internet.find_region(inside) is not None
        result.check(_("the SOCKS proxy serves this machine"), served, inside or "no answer")
        outside = fetch_by_socks(self._world.neighbour, LAN_A.client4, plan.INTERNET4, seconds=1.5)
        result.check(_("the SOCKS proxy serves nobody else"), outside is None, outside or "no connection from the LAN")
        result.check(_("the kernel has the lock"), status["locked"] is True)
        result.figures[_("daemon's memory, KiB")] = float(self._machine.read_resident_kib())
        return result

    def _fetch_region(self) -> str | None:
        return self._internet.find_region(fetch_page(self._world.client))

    def _wait_region(self, *regions: str) -> str:
        """Wait for a page that comes through a server in one of these regions."""
        seen: list[str] = []

        def ask() -> bool:
            seen.append(self._fetch_region() or "")
            return seen[-1] in regions

        self._machine.wait_for(ask, "a page through another server")
        return seen[-1]

    def _region_changed(self) -> StepResult:
        before = self._wait_region(*self._internet.servers)
        wanted, name = ("DE", "Germany") if before == "NL" else ("NL", "Netherlands")
        result = StepResult(
            name=_("region changed"), done=_("`psiphon-vpn region {name}` while open").format(name=name)
        )
        self._announce(
            _("Pages come through a server in {before}. The user chooses another country with a command.").format(
                before=before
            )
        )
        probes = self._start_probes(LAN_A)
        begin = time.monotonic()
        self._machine.set_region(name)
        after = self._wait_region(wanted)
        result.figures[_("command to the next page, ms")] = (time.monotonic() - begin) * 1000
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        result.check(_("pages come through a server in the chosen country"), after == wanted, after)
        return result

    def _list_refreshed(self) -> StepResult:
        result = StepResult(name=_("list refreshed"), done=_("a newer list of servers comes through the tunnel"))
        self._announce(
            _("The list's host has a newer list. It comes through the tunnel, and nothing outside shows it.")
        )
        self._internet.publish(*reversed(KNOWN))
        before = len(self._internet.list_host.read_record())
        probes = self._start_probes(LAN_A)
        self._machine.bring_list(NETWORK, authority=self._internet.list_host.authority.certificate, through_tunnel=True)
        found = self._collect(probes)
        frames = self._judge(result, [probes], [found])
        packets = [decode_ip(frame.data) for frame in frames]
        hosts = {plan.LIST_HOST4, plan.LIST_HOST6}
        direct = [packet for packet in packets if packet is not None and packet.destination in hosts]
        result.check(_("no frame to the list's host outside"), not direct, f"{len(frames)} frames")
        callers = {line["client"] for line in self._internet.list_host.read_record()[before:]}
        regions = {self._internet.find_region(caller) for caller in callers}
        result.check(
            _("the list's host was asked by the tunnel's server"),
            bool(callers) and None not in regions,
            ", ".join(callers),
        )
        return result

    def _server_blocked(self) -> StepResult:
        result = StepResult(name=_("server blocked"), done=_("the provider lets nothing to or from the server pass"))
        before = self._wait_region(*self._internet.servers)
        self._announce(
            _("The provider censors: nothing to or from the server in {before} passes any more.").format(before=before)
        )
        probes = self._start_probes(LAN_A)
        self._censored.censor.impose(ByAddress(self._censored.list_addresses(before)))
        begin = time.monotonic()
        after = self._wait_region(*(set(self._internet.servers) - {before}))
        result.figures[_("server blocked to the next page, ms")] = (time.monotonic() - begin) * 1000
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        result.check(_("the provider has stopped something"), self._censored.censor.count() > 0)
        result.check(_("pages come through another server"), after != before, f"{before}, {after}")
        self._censored.censor.lift()
        return result

    def _all_servers_blocked(self) -> StepResult:
        result = StepResult(
            name=_("all known servers blocked"), done=_("no known server can be reached; a friend knows another one")
        )
        self._announce(_("Now the provider resets every connection to all servers that are known. Nothing may open."))
        known = KNOWN
        wanted = [region for region in known if (self._machine.read_status() or {}).get("region") == region]
        addresses = self._censored.list_addresses(*known)
        self._censored.censor.impose(ByReset(addresses), ByAddress(addresses))
        self._machine.wait_for(self._is_closed, "the end of the lease")
        probes = self._start_probes(LAN_A)
        found = self._collect(probes)
        self._expect_silence(result, found)
        self._machine.wait_for(lambda: self._count_servers()[1] >= len(wanted), "an attempt to reach them")
        known_now, tried = self._count_servers()
        result.check(
            _("status counts the known and the tried servers"),
            known_now == len(known),
            f"{known_now} known, {tried} tried",
        )
        self._announce(_("A friend's bundle, sent by messenger or on a USB stick, brings a list with another server."))
        bundle = self._world.directory / "bundle"
        write_bundle(bundle, self._internet.sign(*known, "SE"))
        begin = time.monotonic()
        self._machine.bring_list(NETWORK, authority=self._internet.list_host.authority.certificate, bundle=bundle)
        self._machine.set_region("best")
        after = self._wait_region("SE")
        result.figures[_("bundle to the next page, ms")] = (time.monotonic() - begin) * 1000
        self._wait_ipv6()
        opened = self._start_probes(LAN_A)
        found_opened = self._collect(opened)
        self._judge(result, [probes, opened], [found, found_opened])
        self._expect_tunnel(result, found_opened)
        result.check(_("pages come through the new server"), after == "SE", after)
        self._censored.censor.lift()
        return result

    def _is_closed(self) -> bool:
        status = self._machine.read_status()
        return status is not None and status["state"] != "OPEN" and not self._machine.lease_remains()

    def _count_servers(self) -> tuple[int, int]:
        servers = (self._machine.read_status() or {}).get("servers") or {}
        return servers.get("known") or 0, servers.get("tried") or 0

    def _core_killed(self) -> StepResult:
        result = StepResult(name=_("core killed"), done=_("SIGKILL to the tunnel program while open"))
        self._announce(_("The core is killed with SIGKILL while probes run. The service must reopen by itself."))
        status = self._machine.wait_state("OPEN")
        pid = status["core_pid"]
        probes = self._start_probes(LAN_A)
        time.sleep(0.25)
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self._machine.wait_for(self._reopened(pid), "another core and an open tunnel")
        result.figures[_("core killed to reopened, ms")] = (time.monotonic() - begin) * 1000
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        after = self._machine.wait_state("OPEN")
        result.check(_("reopened with a new core"), after["core_pid"] not in {pid, None})
        return result

    def _reopened(self, old: int) -> Callable[[], bool]:
        def ask() -> bool:
            status = self._machine.read_status()
            return status is not None and status["state"] == "OPEN" and status["core_pid"] not in {old, None}

        return ask

    def _daemon_killed(self) -> StepResult:
        result = StepResult(
            name=_("daemon killed"), done=_("SIGKILL to the daemon; the lease expires; a new daemon takes over")
        )
        self._announce(_("The daemon is killed with SIGKILL. No program can close the tunnel now: the lease expires."))
        self._machine.wait_state("OPEN")
        self._machine.kill_daemon()
        probes = self._start_probes(LAN_A)
        seconds = self._machine.wait_for(lambda: not self._machine.lease_remains(), "the end of the lease")
        result.figures[_("daemon killed to lease expired, ms")] = seconds * 1000
        found = self._collect(probes)
        locked = self._start_probes(LAN_A)
        found_locked = self._collect(locked)
        self._expect_silence(result, found_locked)
        self._announce(_("A new daemon takes over while probes run."))
        takeover = self._start_probes(LAN_A)
        begin = time.monotonic()
        self._machine.start_daemon()
        self._machine.wait_state("OPEN")
        result.figures[_("new daemon to open, ms")] = (time.monotonic() - begin) * 1000
        found_takeover = self._collect(takeover)
        self._judge(result, [probes, locked, takeover], [found, found_locked, found_takeover])
        return result

    def _rules_flushed(self) -> StepResult:
        result = StepResult(name=_("rules flushed"), done=_("root runs `nft flush ruleset` while open"))
        self._announce(
            _("Root runs `nft flush ruleset` while probes run. The wire guard must stay, the rest must return.")
        )
        self._machine.wait_state("OPEN")
        probes = self._start_probes(LAN_A)
        time.sleep(0.25)
        with CommitWatch(self._world.client) as commits:
            self._world.client.run(["nft", "flush", "ruleset"])
            begin = commits.first_by("nft") or time.monotonic()
            guard = self._world.client.run(["nft", "list", "table", "inet", names.GUARD_TABLE], check=False)
            result.check(_("the wire guard survives the flush"), guard.returncode == 0)
            self._machine.wait_for(self._base_stands, "the base rules")
            self._machine.wait_state("OPEN")
            self._machine.wait_for(self._machine.lease_remains, "the lease")
            result.figures[_("flushed to reopened, ms")] = (time.monotonic() - begin) * 1000
            healed = commits.next_after(begin)
        if healed is not None:
            result.figures[_("flushed to rules restored, ms")] = (healed - begin) * 1000
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        return result

    def _base_stands(self) -> bool:
        chain = ["nft", "list", "chain", "inet", names.BASE_TABLE, "output"]
        return "policy drop" in self._world.client.run(chain, check=False).stdout

    def _uplink_moved(self) -> StepResult:
        result = StepResult(
            name=_("uplink moved"), done=_("the cable to provider A is unplugged, provider B's is plugged in")
        )
        self._announce(_("The uplink moves to another provider: the tunnel closes at once and is built again."))
        status = self._machine.wait_state("OPEN")
        pid, daemon = status["core_pid"], self._machine.daemon_pid
        probes = self._start_probes(LAN_B)
        time.sleep(0.1)
        with CommitWatch(self._world.client) as commits:
            before = time.monotonic()
            self._world.disconnect_uplink(LAN_A)
            self._machine.wait_for(lambda: not self._machine.lease_remains(), "the end of the lease", seconds=4)
            lost = commits.first_loss()
            closed = commits.first_after(lost if lost is not None else before, pid=daemon)
        result.check(_("the daemon closed it before the lease expired"), closed is not None)
        if closed is not None and lost is not None:
            result.figures[_("link loss to closed, ms")] = (closed - lost) * 1000
        moved = time.monotonic()
        self._world.connect_uplink(LAN_B)
        self._machine.wait_for(self._reopened(pid), "an open tunnel through the other provider")
        result.figures[_("new uplink to reopened, ms")] = (time.monotonic() - moved) * 1000
        found = self._collect(probes)
        self._wait_ipv6()
        after = self._start_probes(LAN_B)
        found_after = self._collect(after)
        self._judge(result, [probes, after], [found, found_after])
        self._expect_tunnel(result, found_after)
        return result

    def _stopped(self) -> StepResult:
        result = StepResult(name=_("stopped"), done=_("`psiphon-vpn stop`: disconnected, and still locked"))
        self._announce(_("The user disconnects. The machine must stay locked."))
        self._machine.command("stop")
        status = self._machine.wait_state("LOCKED")
        probes = self._start_probes(LAN_B)
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        self._expect_silence(result, found)
        result.check(_("the kernel has the lock"), status["locked"] is True, status["reason_code"])
        return result
