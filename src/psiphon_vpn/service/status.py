# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The status object of the control protocol: the state machine's decision, and what the kernel holds."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.frame_guard import describe_frame_guard
from psiphon_vpn.linux.ipv6 import Ipv6
from psiphon_vpn.linux.lock import LockView, Viewed
from psiphon_vpn.linux.lockstate import LockState, fetch_lock_state
from psiphon_vpn.linux.sysctl import check_sysctls
from psiphon_vpn.linux.traffic import Standing, explain_filter
from psiphon_vpn.network.bridges import AllowedBridge, explain_bridge_status
from psiphon_vpn.network.choice import explain_choice
from psiphon_vpn.network.observed import ObservedNetwork
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.sysctls import SYSCTLS
from psiphon_vpn.servers.record import ListRecord
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.reasons import LASTING, TRIES_DO_NOT_HELP, Reason, explain
from psiphon_vpn.service.runner import Runner
from psiphon_vpn.shown import show_names

Layers = dict[str, dict[str, str]]


def _layer(state: str, detail: str = "") -> dict[str, str]:
    return {"state": state, "detail": detail}


def _describe_uplink(model: Model) -> dict[str, object] | None:
    uplink = model.uplink
    if uplink is None:
        return None
    return {
        "interface": uplink.name,
        "ipv4": uplink.ipv4,
        "ipv6": uplink.ipv6,
        "chosen": explain_choice(uplink, model.choices, named=model.named, unsuccessful=model.unsuccessful),
        "others": [other.name for other in model.choices if other.index != uplink.index],
    }


def _describe_bridge(allowed: AllowedBridge) -> dict[str, str]:
    sentence, next_step = explain_bridge_status(allowed)
    return {"name": allowed.name, "state": str(allowed.status), "sentence": sentence, "next_step": next_step}


def _describe_list(record: ListRecord | None) -> dict[str, object]:
    if record is None:
        return {"by_region": {}, "list": None}
    about = {
        "profile": record.profile or None,
        "entries": record.entries,
        "fetched_at": record.fetched_at,
        "signed": record.signed,
    }
    return {"by_region": dict(record.by_region), "list": about}


def _describe_bare(names: tuple[str, ...]) -> str:
    return _("it is not on {names}: root's raw frames can leave there").format(names=show_names(names))


def _describe_filters(filters: Sequence[tuple[str, Standing]]) -> dict[str, str]:
    """The layer at the cards' own traffic control."""
    if not filters:
        return _layer("missing", _("there is no interface that leads out"))
    by_sentence: dict[str, list[str]] = {}
    for name, standing in filters:
        if (sentence := explain_filter(standing)) is not None:
            by_sentence.setdefault(sentence, []).append(name)
    if not by_sentence:
        return _layer("ok")
    detail = "; ".join(f"{show_names(names)}: {sentence}" for sentence, names in by_sentence.items())
    return _layer("incomplete", detail)


def explain_no_lease(view: LockView) -> Reason:
    """Why the kernel holds no lease although the model is open."""
    return Reason.LEASE_EXPIRED if view.ran_out else Reason.LEASE_LOST


def explain_no_uplink(seen: ObservedNetwork) -> tuple[Reason, str]:
    """Why there is no uplink, as far as the links show it, and what to name with the reason ("": nothing)."""
    if seen.odd_uplink:
        return Reason.ODD_UPLINK, ""
    if seen.ownerless_uplink:
        return Reason.UPLINK_OWNERLESS, seen.ownerless_uplink
    if seen.conflicts:
        # A network manager cannot make the route: its gateway has the TUN's address.
        return Reason.SUBNET_TAKEN, ""
    if seen.tunnelled_uplink:
        return Reason.UPLINK_TUNNELLED, seen.tunnelled_uplink
    if seen.vrf_uplink:
        return Reason.UPLINK_VRF, seen.vrf_uplink
    return Reason.NO_UPLINK, ""


class StatusReader:
    """Reads the status; reads the kernel's rules again only if they changed.

    Args:
        rules: a value that changes with the kernel's rules.
        guarded_cards: the cards that the frame guard is on (`frame_guard.read_guarded_cards`).
        holds_lease: whether the kernel itself holds the lease now.
        boot_lock_failed: whether the boot lock did not load at this boot and network managers were held back.
        read_list: the record of the stored list of servers, if there is one that can be used.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        lock: Viewed,
        features: Features,
        rules: Callable[[], object],
        guarded_cards: Callable[[], frozenset[str] | None],
        holds_lease: Callable[[], bool],
        boot_lock_failed: Callable[[], bool],
        read_list: Callable[[], ListRecord | None],
    ) -> None:
        self._runner = runner
        self._lock = lock
        self._features = features
        self._rules = rules
        self._guarded_cards = guarded_cards
        self._ask_for_lease = holds_lease
        self._boot_lock_failed = boot_lock_failed
        self._read_list = read_list
        self._reading = asyncio.Lock()
        self._seen: tuple[object, LockState] | None = None

    async def read(self) -> dict[str, object]:
        """The status now. Reading the kernel takes some tens of milliseconds if the rules changed.

        The state machine's decision is read last, after everything that has to be awaited.
        """
        lock = await self._read_lock()
        held = self._holds_lease()
        model = self._runner.shown
        if model.state is State.OPEN and not held:
            # The state machine is about to open, or its timer for renewals notices within seconds.
            model = replace(model, state=State.VERIFYING, reason=explain_no_lease(self._lock.view), detail="")
        reason, seen = model.reason, self._runner.model.seen
        if reason is Reason.NO_UPLINK:
            reason, detail = explain_no_uplink(seen)
            if reason is Reason.NO_UPLINK and self._boot_lock_failed():
                reason = Reason.BOOT_LOCK
            model = replace(model, detail=detail or model.detail)
        explanation = explain(reason, model.detail)
        following = None if reason in TRIES_DO_NOT_HELP else self._runner.next_try
        return {
            "state": str(model.state),
            "reason": explanation.sentence,
            "reason_code": str(reason),
            "lasting": reason in LASTING,
            "next_step": explanation.next_step,
            "since": self._runner.since.astimezone(UTC).isoformat(timespec="milliseconds"),
            "next_try": following.at.isoformat(timespec="milliseconds") if following else None,
            "next_try_seconds": round(following.left, 1) if following else None,
            "next_try_what": following.what if following else None,
            "locked": lock.locked is True,
            "intent": str(model.intent),
            "region": model.region,
            "region_wanted": model.settings.egress_region or None,
            "regions_available": list(self._runner.core.regions),
            "servers": {**self._runner.core.describe_servers(), **_describe_list(self._read_list())},
            "connection": self._runner.core.describe_connection(),
            "uplink": _describe_uplink(model),
            "bridges": [_describe_bridge(bridge) for bridge in seen.bridges],
            "moved_away": sorted(self._runner.moved),
            "ipv6": held and self._lock.view.ipv6_open,
            "socks": {"port": self._runner.model.settings.socks_port, "available": self._runner.core.proxy},
            "ipv6_off": None if self._lock.view.ipv6 is Ipv6.ON else str(self._lock.view.ipv6),
            "layers": self._layers(lock, held=held),
            "missing_features": list(self._features.missing),
            "core_pid": self._runner.core.pid,
            "clock_skew_seconds": self._runner.core.clock_skew,
        }

    async def _read_lock(self) -> LockState:
        # One reader at a time; a reader that waited finds the result, if the rules did not change meanwhile.
        async with self._reading:
            try:
                rules = self._rules()
            except OSError:
                return await fetch_lock_state(cards=False)
            if self._seen is None or self._seen[0] != rules:
                self._seen = (rules, await fetch_lock_state(cards=False))
            return self._seen[1]

    def _holds_lease(self) -> bool:
        """Whether the kernel holds the lease, not whether it was requested: the lease runs out without notice."""
        try:
            return self._ask_for_lease()
        except OSError:
            return self._lock.view.leased

    def _layers(self, lock: LockState, *, held: bool) -> Layers:
        layers: Layers = dict(lock.layers)
        if not self._features.owner_flag and layers.get("wire_guard", {}).get("state") == "missing":
            layers["wire_guard"] = _layer("unsupported", _("this kernel or nft has no owned tables"))
        if not self._features.egress_hook:
            layers["egress_guard"] = _layer("unsupported", _("this kernel or nft has no egress hook"))
        elif bare := (*self._lock.view.unguarded, *self._runner.model.seen.odd_wires):
            layers["egress_guard"] = _layer("incomplete", _describe_bare(bare))
        if (frame_guard := self._describe_frames()) is not None:
            layers["frame_guard"] = frame_guard
        if self._features.traffic_filters:
            layers["traffic_control"] = _describe_filters(self._lock.view.filters)
        else:
            layers["traffic_control"] = _layer("unsupported", _("this kernel has no BPF filters (cls_bpf, clsact)"))
        wrong = check_sysctls(SYSCTLS)
        layers["sysctls"] = _layer("broken", ", ".join(wrong)) if wrong else _layer("ok")
        layers["tun"] = _layer("ok") if self._lock.view.tun else _layer("missing")
        trouble = self._lock.view.routing_trouble
        layers["routing"] = _layer("broken", trouble) if trouble else _layer("ok")
        layers["lease"] = _layer("ok") if held else _layer("missing")
        return layers

    def _describe_frames(self) -> dict[str, str] | None:
        """The frame guard, read each time: it goes with its holder, and with a card, without a commit."""
        if not self._features.owner_flag:
            return _layer("unsupported", _("this kernel or nft has no owned tables"))
        if not self._features.egress_hook:
            return _layer("unsupported", _("this kernel or nft has no egress hook"))
        try:
            guarded = self._guarded_cards()
        except OSError as error:
            return _layer("missing", _("the kernel does not list it: {reason}").format(reason=error))
        described = describe_frame_guard(guarded, self._runner.model.seen.cards)
        return None if described is None else _layer(*described)
