# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/performance.md from what `psiphon-vpn bench --json FILE` found, and keeps it in docs/performance.json.

`python -m tests.performance_page FILE...` takes results in: a family replaces what an earlier run with the
same programs found of it. Without a file it writes the page anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from psiphon_lab.bench.families import FAMILIES
from psiphon_lab.bench.growth import Shape
from psiphon_lab.bench.model import Figure, Growth, Report, read_report
from psiphon_lab.bench.paired import Verdict
from psiphon_lab.bench.runner import REAL_PROGRAMS, STAND_INS
from psiphon_lab.bench.summary import count_verdicts
from psiphon_lab.bench.words import (
    show_goal,
    show_growth,
    show_interval,
    show_middle,
    show_number,
    show_values,
    show_verdict,
)
from psiphon_lab.revision import describe_mixture

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGE: Final = DOCS / "performance.md"
DATA: Final = DOCS / "performance.json"
HEAD: Final = """# Performance

How fast the service is beside the bare core: the same program on the same path, without the lock. This page is made
from runs (`docs/performance.json`, by `python -m tests.performance_page`); what was not run is not in it.

## How to repeat it

```
sudo ./Psiphon-Linux-VPN-Service-Setup.sh bench --json new.json --html new.html
sudo ./Psiphon-Linux-VPN-Service-Setup.sh bench --core PATH --server PATH --json new.json --compare old.json
```

The first uses stand-ins, whose core is a fast carrier that looks into no packet: the lock's own cost is a large part of
what is left. The second uses a real psiphon-tunnel-core and a real psiphond, and says what changed since an older run
beyond noise. `--quick` shows in minutes that it works; names of families (`bench throughput times`) choose a part.

## How to read it

- Both sides have a world of their own, equal to the other's, and are measured in turn, the first one first in every
  other round. A comparison is the median over the rounds. Its interval contains the true median with at least 95 %
  (sign test), or less with fewer than six rounds.
- A goal is *met* or *missed* if the whole interval says so; otherwise it is *not decided*. *Below the noise*: the two
  sides cannot be told apart.
- Rates depend on what else the machine does, so the core's own processor time per 100 MB counts beside them. The family
  *control* compares two bare cores in the same way: what it shows is the instrument's.
- Start is from the command's call to a page answered; reopened is from the kernel's announcement of the change to a
  page answered. The bare core's is from the start of a new one to a page.
- Growth: a line is fitted (Theil-Sen, with a bootstrap interval). *Flat*: less than a tenth over the whole range, or
  below the noise. *Levels off*: it grew, and no longer does. In brackets: the bare core; there the line is that of the
  ratio.

"""
NOTES: Final = """## What the goals show

- Nine rounds, with the computer's two processors for the bench alone. What is *not decided* lies so near its goal that
  nine rounds do not tell on which side, or the rates of one side differ from round to round by more than the two sides
  do: then the core's processor time says more.
- With *16 flows* the core takes about twice the processor time for the same bytes on both sides, and the lock adds more
  than with one flow: 1.4 s for 100 MB of TCP down instead of 1.1, and 0.5 to 0.8 of the others instead of 0.1. Why was
  not looked into; smaller packets on the wire, and so more of them, would explain both.
- *TCP connections a second* are asked of both processors at once: each new one costs the core 19 to 26 µs more, for its
  packets' way through the rules and for an entry of connection tracking, of 128 to 136 µs. Nothing was tried beyond the
  shortcuts below.
- *The daemon's processor time when idle* depends on the computer: 0.064 % on one and 0.074 % on the one of these runs.
- *TCP down* is missed. The core sends a packet of its own for nearly every one that it carries, and each of them
  passes six chains. A trial with one accepting rule in each hook, and connection tracking, still took 1.12 (1.06 to
  1.18) of the bare core's processor time: so 1.03 is less than rules that fail closed can take on this path. What was
  tried: shortcuts for the common packets, no clamp of TCP's segment size, one comparison for a single gateway
  (together 1.60 to 1.35, on a busy computer).
- *UDP* is asked what TCP is asked (`python -m tests.rule_walk`): 48 expressions on the way into the TUN, in the
  application's own call, and 16 on the way out of it, in the core's. But each datagram is a packet of its own there,
  while the wire sees them joined: counted with the real core, 0.13 packets in and 0.11 out for each datagram down,
  0.15 and 0.21 for each one up (TCP down: 0.19 and 1.29). So the core's processor time has 32 expressions for a
  datagram down, 29 for one up, and 173 for a segment of TCP down. In samples of the core's time, netfilter is 10.8 %
  for UDP down and 12.1 % up, 3.8 % and 8.3 % for the bare core (the laboratory's bridge and router): 4.6 and 4.1 of
  it are rules, the rest connection tracking and the hooks themselves. 1.03 leaves 3, and connection tracking cannot
  go: it knows answers from packets that reach in. In an application that only sends it is 22.5 % (rules 16): that is
  what the rate of UDP up lacks, since one processor sends. The TUN is the same on both sides (MTU 1500, queue of 500,
  one queue, no offloads, no packet dropped), and the core opens it so: IFF_VNET_HDR and more queues are not for the
  service to choose. Asking for the TUN before loopback, and for its name once in a chain, would save 10 of the 48:
  less than can be measured, so the rules stay as they are.
- *The daemon's wake-ups* were 1.0 a second in an earlier run, 12 in twelve seconds: 6 renewals; 3 for a question
  through the tunnel (its answer, the core's notice of its bytes, the end of a pause that nothing waited for); and the
  bench's own status and page, which came after the moment from which it should have been idle. The watchdog's
  notification, one every ten seconds, was not counted. Counted anew for 64 seconds, by waits of the event loop
  instead of a clock, with the watchdog and the real core: 51 before, 36 (0.56 a second) since notification and pause
  share the wake-ups of the lease. What is left: 32 renewals, and an answer and a notice every 16 seconds.
  `tests/unit/test_wake_ups.py` holds these causes.

## What grows, and what was done

- *Interfaces*: each look at the network went through all interfaces for each of them. It now goes through them once:
  with 1,000 interfaces 1.1 ms of processor time instead of 27. What remains is in proportion, mostly the kernel's
  listings and their parsing: a reopening takes 1.1 s of processor time with 1,000 interfaces and 0.5 s with one, both
  under a profiler.
- *Foreign commits*: after a commit of another program to its own tables the daemon reads the whole lock back, some
  17 ms of processor time. It did so for each of them, as fast as it could: 72 % of a processor at 100 a second and
  98 % at 1,000. Now it does at most five times a second; a commit that touches a table of the service, or may, is read
  at once. What grows beyond that is the kernel's announcements, which are all parsed. At 1,000 a second the ruleset
  often changes under each of the 50 listings that a reading tries: then the tunnel closes, and opens again after a
  look. That came at least once in 5 of 5 rounds of five seconds, and in 3 of 5 before there were pauses between the
  readings; at 100 and 300 a second in none of 4.

"""
"""What people say about it."""


def split_about(report: Report) -> dict[str, Any]:
    """The circumstances of each family of a run."""
    return dict.fromkeys(report.about["families"], report.about)


def merge(runs: dict[str, Any], report: Report) -> None:
    """Take a run in: by its programs, each family in the place of what was known of it."""
    run = runs.setdefault(report.about["programs"], {"families": {}})
    described = report.describe()
    for family, about in split_about(report).items():
        run["families"][family] = {
            "about": about,
            "figures": [item for item in described["figures"] if item["title"]["family"] == family],
            "growths": [item for item in described["growths"] if item["family"] == family],
            "failures": {name: reason for name, reason in report.failures.items() if name.startswith(f"{family}: ")},
        }


def _shorten(value: Any) -> Any:
    """The same with five digits of each number: nobody needs more, and the file is read by people too."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _shorten(item) for key, item in value.items()}
    return [_shorten(item) for item in value] if isinstance(value, list) else value


def read_run(run: dict[str, Any]) -> Report:
    """All families of the same programs as one report."""
    parts = run["families"].values()
    joined = {
        "format": 1,
        "about": {"families": list(run["families"])},
        "figures": [item for part in parts for item in part["figures"]],
        "growths": [item for part in parts for item in part["growths"]],
        "failures": {name: reason for part in parts for name, reason in part["failures"].items()},
    }
    return read_report(joined)


def _list_goals(runs: dict[str, Report]) -> Iterator[str]:
    yield "## Goals"
    yield ""
    for programs in (REAL_PROGRAMS, STAND_INS):
        known = runs[programs].about["families"] if programs in runs else []
        if missing := [family.name for family in FAMILIES if family.name not in known]:
            yield f"**Not run yet** with {programs}: {', '.join(missing)}."
            yield ""
    for programs, report in runs.items():
        counts = count_verdicts(report)
        if not counts:
            continue
        shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
        yield f"With {programs}: {shown}."
        yield ""
        yield "| Figure | Beside | Service | Compared | Interval | Goal | |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        for figure in report.figures.values():
            if figure.verdict is not None:
                yield _show_row(figure, goal=True)
        yield ""


def _show_row(figure: Figure, *, goal: bool) -> str:
    title = figure.title
    base = f"{show_values(figure.base)}" if figure.base else ""
    verdict = show_verdict(figure)
    verdict = f"**{verdict}**" if figure.verdict is Verdict.MISSED else verdict
    words = [f"{title.family}: {title.name}, {title.unit}", base, show_values(figure.product)]
    words += [show_middle(figure) if figure.base else "", show_interval(figure) if figure.base else ""]
    words += [show_goal(title)] if goal else []
    return f"| {' | '.join([*words, verdict])} |"


def _list_others(programs: str, report: Report, run: dict[str, Any]) -> Iterator[str]:
    yield f"## Everything else, with {programs}"
    yield ""
    for family, part in run["families"].items():
        about = part["about"]
        load = about["load"]
        yield (
            f"- *{family}*: {about['rounds']} rounds, {about['when']}, commit {about['commit']}, "
            f"Linux {about['kernel']}, {about['processors']} processors ({about['processor']}), "
            f"load of the machine {load['median']:.1f} "
            f"({load['least']:.1f} to {load['most']:.1f})"
        )
    yield ""
    if mixture := describe_mixture(part["about"]["commit"] for part in run["families"].values()):
        yield mixture
        yield ""
    rows = [_show_row(figure, goal=False) for figure in report.figures.values() if figure.verdict is None]
    if rows:
        yield "| Figure | Beside | Service | Compared | Interval | |"
        yield "| --- | --- | --- | --- | --- | --- |"
        yield from rows
        yield ""
    for name, reason in report.failures.items():
        yield f"- Not measured: {name}: {reason}"
    if report.failures:
        yield ""


def _list_growths(programs: str, report: Report) -> Iterator[str]:
    if not report.growths:
        return
    yield f"## Growth, with {programs}"
    yield ""
    yield "| Figure | Medians by number | Verdict |"
    yield "| --- | --- | --- |"
    for growth in report.growths.values():
        yield f"| {growth.name}, {growth.unit} | {_show_points(growth)} | {_show_verdict(growth)} |"
    yield ""


def _show_points(growth: Growth) -> str:
    words = []
    for number, values in sorted(growth.product.items()):
        base = growth.base.get(number)
        beside = f" ({show_number(_median(base))})" if base else ""
        words.append(f"{number:,}: {show_number(_median(values))}{beside}")
    return "; ".join(words)


def _show_verdict(growth: Growth) -> str:
    words = show_growth(growth)
    return words if growth.fit.shape in {Shape.FLAT, Shape.LEVELS} else f"**{words}**"


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def render(runs: dict[str, Any]) -> str:
    """The page."""
    reports = {programs: read_run(run) for programs, run in runs.items()}
    lines = [*_list_goals(reports)]
    lines += [NOTES.rstrip(), ""] if NOTES else []
    for programs, report in reports.items():
        lines += _list_growths(programs, report)
    for programs, report in reports.items():
        lines += _list_others(programs, report, runs[programs])
    return HEAD + "\n".join(lines).rstrip() + "\n"


def read_known() -> dict[str, Any]:
    """What earlier runs found."""
    return dict(json.loads(DATA.read_text(encoding="utf-8"))) if DATA.exists() else {}


def main(paths: Iterable[str]) -> None:
    """Take results in, and write the page."""
    runs = read_known()
    for path in paths:
        merge(runs, read_report(json.loads(Path(path).read_text(encoding="utf-8"))))
    runs = dict(sorted(_shorten(runs).items()))
    text = json.dumps(runs, separators=(",", ":")).replace('},{"title', '},\n{"title')
    DATA.write_text(f"{text}\n", encoding="utf-8")
    PAGE.write_text(render(runs), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
