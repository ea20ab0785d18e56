# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""From a censor's strike to the next page, with the service and, in the same run, with the bare core.

`python -m psiphon_lab.censor_figures`, as root, prints them. With `--rescue` all known servers are stopped instead, and
the rescue too in each way that a censor has: until a page comes, or the status says why none does.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from psiphon_lab.censored import (
    Censored,
    Strike,
    Untouched,
    list_strikes,
    measure_next_page,
    open_bare_core,
    open_censored,
    open_service,
)
from psiphon_lab.censored_rescue import RESCUE_CENSORS, forget, measure_rescue, open_rescued
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.pages import fetch_page
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_vpn.i18n import _

RESCUE_LIMIT = 120.0
"""Seconds to wait for a page or a reason."""
TRIES = 12
"""A core chooses its protocol at random. It is begun anew until it has one that the censor stops."""


def measure_bare(censored: Censored, strike: Strike) -> float:
    """Seconds with the bare core, started for this; infinite if no page came within the time limit."""

    def measure() -> float:
        with open_bare_core(censored) as fetch:
            return measure_next_page(censored, fetch, strike).seconds

    return _try(censored, measure)


def measure_service(censored: Censored, machine: Machine, strike: Strike) -> float:
    """Seconds with the service, whose core is begun anew for this; infinite if no page came within the time limit."""

    def measure() -> float:
        machine.stop_daemon()
        shutil.rmtree(machine.state_dir / "core", ignore_errors=True)
        machine.start_daemon()
        return measure_next_page(censored, lambda: fetch_page(censored.world.client), strike).seconds

    return _try(censored, measure)


def measure_all(censored: Censored) -> dict[str, tuple[float, float]]:
    """For each censor that leaves a way out, the seconds with the service and with the bare core.

    The bare core comes first: the lock stays when the service ends.
    """
    strikes = list_strikes(censored)
    bare = {name: measure_bare(censored, strike) for name, strike in strikes.items()}
    figures: dict[str, tuple[float, float]] = {}
    with open_service(censored) as machine:
        for name, strike in strikes.items():
            figures[name] = (measure_service(censored, machine, strike), bare[name])
    return figures


def _try(censored: Censored, measure: Callable[[], float]) -> float:
    for _try_number in range(TRIES):
        try:
            return measure()
        except Untouched:
            continue
        except LabError:
            break
        finally:
            censored.censor.lift()
    return math.inf


def print_rescues(censored: Censored) -> None:
    """Print the result for each censor of the rescue, with the service's real times."""
    with open_rescued(censored) as machine:
        for name, case in RESCUE_CENSORS.items():
            censored.censor.lift()
            forget(machine)
            try:
                outcome = measure_rescue(censored, machine, case.censors, seconds=RESCUE_LIMIT)
            except LabError as error:
                sys.stdout.write(f"{name:<40} {str(error).splitlines()[0]}\n")
                continue
            page = reason = "none"
            if outcome.region is not None:
                page = f"through {outcome.region} after {outcome.page:5.1f} s"
            if outcome.reason:
                reason = f"after {outcome.reason_after:5.1f} s: {outcome.sentence}"
            sys.stdout.write(f"{name:<40} page {page}; reason {reason}\n")


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="censor_figures", description=__doc__)
    parser.add_argument("--core", type=Path, help=_("a real psiphon-tunnel-core; needs --server too"))
    parser.add_argument("--server", type=Path, help=_("a real psiphond; needs --core too"))
    parser.add_argument("--rescue", action="store_true", help=_("all known servers are stopped"))
    options = parser.parse_args()
    if (options.core is None) != (options.server is None):
        parser.error(_("give --core and --server together"))
    real = None if options.core is None else RealPrograms(core=options.core.resolve(), server=options.server.resolve())
    with open_censored(real, captures=False) as censored:
        if options.rescue:
            print_rescues(censored)
            return 0
        for name, (service, bare) in measure_all(censored).items():
            sys.stdout.write(f"{name:<40} service {service:5.1f} s, bare core {bare:5.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
