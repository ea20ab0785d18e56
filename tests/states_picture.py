# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/states.md from the state machine's own table: `python -m tests.states_picture`."""

from __future__ import annotations

from pathlib import Path

from psiphon_vpn.network.choice import FIRST_PATIENCE_SECONDS, LAST_PATIENCE_SECONDS
from psiphon_vpn.policy.model import State
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.model import (
    CALM_SECONDS,
    CHANGES_AT_ONCE,
    FIRST_FIGHT_SECONDS,
    FIRST_RETRY_SECONDS,
    HELD_SECONDS,
    LAST_FIGHT_SECONDS,
    LAST_RETRY_SECONDS,
    LAST_UNREST_SECONDS,
    LEGAL_MOVES,
    QUIET_SECONDS,
    RENEWAL_SECONDS,
    RESCUE_EVERY,
    RESCUE_SECONDS,
    RESCUES_AT_FIRST,
    SETTLE_SECONDS,
    SLOW_SECONDS,
    TROUBLES_AT_ONCE,
    VERIFICATION_SECONDS,
    WAKE_SECONDS,
)
from psiphon_vpn.service.reasons import Reason, explain

PATH = Path(__file__).parents[1] / "docs" / "states.md"

PASSES = {
    State.LOCKED: "the plumbing of the link",
    State.CONNECTING: "and psiphon-user on the uplink",
    State.VERIFYING: "as connecting",
    State.OPEN: "and applications through the TUN, while the lease runs",
    State.FAILED: "as locked",
}
TIMERS = {
    Timer.RETRY: (
        f"{FIRST_RETRY_SECONDS:g} s, doubled each time up to {LAST_RETRY_SECONDS:g} s; for openings that did not hold "
        f"{TROUBLES_AT_ONCE} times at once, then after {FIRST_RETRY_SECONDS:g} to {LAST_UNREST_SECONDS:g} s; for "
        f"changes of network without a calm between them {CHANGES_AT_ONCE} times at once, then when the new one has "
        f"held for {SETTLE_SECONDS:g} s; in a fight over the lock after {FIRST_FIGHT_SECONDS:g} to "
        f"{LAST_FIGHT_SECONDS:g} s of peace",
        "`LOCKED`: connects again",
    ),
    Timer.ESTABLISH: ("`establish_timeout`", "`CONNECTING` without a tunnel: gives this core up"),
    Timer.SLOW: (
        f"{SLOW_SECONDS:g} s",
        "`CONNECTING`: looks for the cause, without sending anything, and tells it; again after as long",
    ),
    Timer.QUIET: (f"{QUIET_SECONDS:g} s without a word of the core", "`CONNECTING`: the core hangs; another one"),
    Timer.GIVE_WAY: (
        f"{FIRST_PATIENCE_SECONDS:g} s, doubled with each round up to {LAST_PATIENCE_SECONDS:g} s",
        "`CONNECTING` without a tunnel: takes another uplink, where there is one",
    ),
    Timer.RESCUE: (
        f"{RESCUE_SECONDS:g} s, again and again",
        f"`CONNECTING`: at look {', '.join(map(str, RESCUES_AT_FIRST))} and each {RESCUE_EVERY}th without a tunnel "
        "between them, asks for a newer list of servers",
    ),
    Timer.HELD: (f"{HELD_SECONDS:g} s", "`OPEN`: the opening has held; troubles are counted from zero again"),
    Timer.CALM: (
        f"{CALM_SECONDS:g} s",
        "`OPEN`, or no uplink: changes and fights are counted from zero again, too",
    ),
    Timer.VERIFICATION: (f"{VERIFICATION_SECONDS:g} s", "`VERIFYING`: a verification without an outcome is given up"),
    Timer.RENEWAL: (f"{RENEWAL_SECONDS:g} s without a renewal of the lease", "`OPEN`: everything is verified again"),
    Timer.WAKE: (
        f"{WAKE_SECONDS:g} s of waking time",
        "sleep was announced, and did not come or its end was not told: connects",
    ),
}


def render() -> str:
    """The document."""
    lines = [
        "# The states",
        "",
        "Made from the program's own tables by `python -m tests.states_picture`; a test holds it to them. What leads",
        "from state to state, and why, is in [architecture.md](architecture.md#the-state-machine).",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> LOCKED",
    ]
    for state, moves in LEGAL_MOVES.items():
        for there in State:
            if there in moves and there is not state:
                label = " : lease closed first" if state is State.OPEN else ""
                label = " : verified, then the lease" if there is State.OPEN else label
                lines.append(f"    {state} --> {there}{label}")
    lines += ["```", "", "Every state may also be entered anew from itself, except where the table says no.", ""]
    lines += ["| State | May go to | What passes |", "| --- | --- | --- |"]
    for state, moves in LEGAL_MOVES.items():
        targets = ", ".join(f"`{move}`" for move in State if move in moves)
        lines.append(f"| `{state}` | {targets} | {PASSES[state]} |")
    lines += ["", "## Timers", "", "Each waits up to a fifth longer, at random. Every move cancels all of them.", ""]
    lines += ["| Timer | Runs out after | And then |", "| --- | --- | --- |"]
    lines += [f"| `{timer}` | {TIMERS[timer][0]} | {TIMERS[timer][1]} |" for timer in Timer]
    lines += ["", "## Reasons", "", "What `status` says, by the code that programs read (`reason_code`).", ""]
    lines += ["| Code | Why | What to do |", "| --- | --- | --- |"]
    for reason in Reason:
        reported = explain(reason)
        lines.append(f"| `{reason}` | {reported.sentence} | {reported.next_step or ''} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
