# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machine. Pure: a model and an event give a new model and effects, which the runner carries out in order.

Each state's answers are in its module of `states/`, the promises about every answer in `plan`. The following holds by
construction, and is tested with random sequences of events:

* every move out of OPEN begins with `CloseLease`;
* `OpenTunnel` only answers `Verified` with the number of the current verification;
* an event of an earlier core changes nothing;
* a rescue runs only in CONNECTING: each move ends it first;
* every failure leads to a state that is locked.
"""

from typing import assert_never

from psiphon_vpn.policy.model import State
from psiphon_vpn.service.events import (
    CoreExited,
    CoreFault,
    CoreRegion,
    CoreStartFailed,
    CoreTunnels,
    Event,
    RescueEnded,
    VerificationFailed,
    Verified,
)
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.plan import Plan, Step
from psiphon_vpn.service.states import connecting, failed, locked, opened, verifying


def step(model: Model, event: Event) -> Step:
    """The answer to an event. A stale event changes nothing."""
    plan = Plan(model)
    if _is_stale(model, event):
        return plan.step
    match model.state:
        case State.LOCKED:
            locked.answer(plan, event)
        case State.CONNECTING:
            connecting.answer(plan, event)
        case State.VERIFYING:
            verifying.answer(plan, event)
        case State.OPEN:
            opened.answer(plan, event)
        case State.FAILED:
            failed.answer(plan, event)
        case _ as never:
            assert_never(never)
    return plan.step


def _is_stale(model: Model, event: Event) -> bool:
    """Whether it comes from an earlier core, verification or rescue."""
    if isinstance(event, CoreStartFailed | CoreExited | CoreFault | CoreRegion | CoreTunnels):
        return event.core != model.core or not model.core_running
    if isinstance(event, RescueEnded):
        return event.number != model.rescue or not model.rescuing
    return isinstance(event, Verified | VerificationFailed) and event.number != model.verification
