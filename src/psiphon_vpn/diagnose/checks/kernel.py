# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Features of kernel and tools: tried in a scratch namespace and read back, not guessed from versions."""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Check, Outcome, check, fail, mark, ok, warn
from psiphon_vpn.i18n import _

OLDEST_KERNEL: Final = (5, 4)
OLDEST_NFT: Final = (0, 9, 3)
UPGRADE: Final = mark("A newer kernel or nftables has it; the other layers hold meanwhile.")


def _make(id: str, title: str, step: str, feature: str, missing: str, *, needed: bool) -> Check:
    @check(id, title, step)
    def feature_check(facts: Facts) -> Outcome:
        if getattr(facts.features, feature):
            return ok(_("it does"))
        return fail(_(missing)) if needed else warn(_(missing))

    return feature_check


nftables = _make(
    "kernel.nftables",
    mark("The kernel loads nftables' rules"),
    mark("Load the module: sudo modprobe nf_tables. Without it nothing can be locked."),
    "nftables",
    mark("rules cannot be loaded"),
    needed=True,
)
timeouts = _make(
    "kernel.timeouts",
    mark("The kernel ends the permission by itself"),
    mark("Use a newer kernel or nftables. Without this the service never opens."),
    "set_timeout",
    mark("set elements have no time-out: there is no lease"),
    needed=True,
)
route_chains = _make(
    "kernel.route-chains",
    mark("The kernel has chains of type route"),
    UPGRADE,
    "type_route",
    mark("it does not have them"),
    needed=False,
)
owned_tables = _make(
    "kernel.owned-tables",
    mark("The kernel protects the wire guard from being flushed"),
    UPGRADE,
    "owner_flag",
    mark("there are no owned tables (Linux 5.12): a flush of all rules opens until the service repairs that"),
    needed=False,
)
egress_hook = _make(
    "kernel.egress-hook",
    mark("The kernel can stop raw frames"),
    UPGRADE,
    "egress_hook",
    mark("there is no egress hook (Linux 5.16): root's raw frames are not stopped"),
    needed=False,
)

traffic_filters = _make(
    "kernel.traffic-filters",
    mark("The kernel can stop what traffic control moves onto a card"),
    mark("Load the modules: sudo modprobe -a sch_ingress cls_bpf; then: sudo psiphon-vpn restart"),
    "traffic_filters",
    mark("it has no BPF filters at a card's traffic control (clsact, cls_bpf)"),
    needed=False,
)


@check("kernel.parts", mark("The kernel supports every part of the rules"), UPGRADE)
def parts(facts: Facts) -> Outcome:
    """The parts that the base table has to do without (`policy/missing_parts.py`)."""
    if lacking := sorted(facts.features.lacking):
        return warn(_("the rules do without: {names}").format(names=", ".join(lacking)))
    return ok(_("it does"))


@check("kernel.tun", mark("The kernel makes TUN devices"), mark("Load the module: sudo modprobe tun"))
def tun(facts: Facts) -> Outcome:
    """/dev/net/tun, which udev makes for everybody."""
    path = facts.at("/dev/net/tun")
    if not facts.exists(path):
        return fail(_("there is no /dev/net/tun"))
    status = facts.system.stat(path, follow=True)
    if not stat.S_ISCHR(status.st_mode) or (os.major(status.st_rdev), os.minor(status.st_rdev)) != (10, 200):
        return fail(_("/dev/net/tun is something else"))
    return ok("/dev/net/tun")


def _read_version(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


@check(
    "kernel.versions",
    mark("Kernel and nft are new enough"),
    mark("Upgrade the system: older versions were never tried."),
)
def versions(facts: Facts) -> Outcome:
    """The versions that R22 promises."""
    release = facts.read_text(PROC / "sys" / "kernel" / "osrelease").strip()
    nft = facts.rules.version or _("no nft")
    old = [name for name, oldest in ((release, OLDEST_KERNEL), (nft, OLDEST_NFT)) if _read_version(name) < oldest]
    text = f"Linux {release}, {nft}"
    return warn(_("older than what is supported: {names}").format(names=", ".join(old))) if old else ok(text)


CHECKS: Final = (nftables, timeouts, route_chains, owned_tables, egress_hook, traffic_filters, parts, tun, versions)
