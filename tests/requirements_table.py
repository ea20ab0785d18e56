# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/requirements.md: each claim of the security policy, and the tests that check it.

Tests name their requirements themselves with `@pytest.mark.requirement("R4", "B2")`. This module only collects the
marks from their source. Run `python -m tests.requirements_table` in the root of the checkout after you add a mark or
rename a test.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
TARGET = ROOT / "docs" / "requirements.md"

CLAIMS: Mapping[str, str] = {
    "R1": "Security before function: in doubt the machine is blocked, and every error ends locked. No bypass, no "
    "exception for a local network or a program.",
    "R2": "Fail-closed: nothing passes but what a rule allows. The lock stands in the kernel before the network does, "
    "and stays when the service stops, crashes, hangs or is replaced.",
    "R3": "No operation lifts the lock: not start, stop, restart, reload, update, crash or suspend.",
    "R4": "Outbound traffic is blocked by nftables: table `inet psiphon_filter`, chain `output`, policy `drop`.",
    "R5": "Only the user psiphon-user may use the wire, by the uid of the socket. Everybody else, root included, "
    "reaches the outside through the tunnel only.",
    "R6": "A change of the network closes first and opens again only after a fresh check.",
    "R7": "All of it on IPv4 and on IPv6.",
    "R8": "The service is not root and has three capabilities at most; each process has only what it needs.",
    "R9": "Routing forces everything into `PsiphonTUN`, as a second wall beside the firewall.",
    "R10": "The tunnel's own networks are 10.200.3.0/24 and fd42:42:42::/64.",
    "R11": "No name is asked for outside the tunnel, whatever the system's resolver or a program wants; while "
    "connected, names resolve.",
    "R12": "Files have the right owners and modes, and root trusts no file that psiphon-user can write.",
    "R13": "Checksums are checked at installation and before every start; a mismatch runs nothing and stays locked.",
    "R14": "Updates never open the lock and never lead to an older or unverified version.",
    "R15": "One command verifies the security status and says what to do about each failure.",
    "R16": "`nft list chain inet psiphon_filter output` shows the lock, in words that a person can read.",
    "R17": "The kill switch is verified by itself: stopping, moving between networks and resuming leak nothing; the "
    "evidence is captured outside the machine.",
    "R18": "DNS leaks are looked for in the same way, on both families.",
    "R19": "Isolation: the local network is out of reach, forwarded traffic goes through the tunnel or nowhere, and no "
    "route leads around it.",
    "R20": "Security fixes come as releases, with a version and a changelog that has a section for them.",
    "R21": "Without root the commands that need it say so in one line and end with exit code 77.",
    "R22": "Linux only: Ubuntu 20.04, Debian 12, Fedora 39 and later; newer mechanisms are used where they are found.",
    "R23": "What is out of reach, a hostile kernel first of all, is said plainly.",
    "R24": "Processes are isolated, privileges dropped, errors end safely; and that is measured.",
    "R25": "Vulnerabilities can be reported in private.",
    "B1": "The service itself is not root, and the tunnel core beneath it has no capability at all.",
    "B2": "The tunnel is open only by a lease in the kernel that runs out by itself unless renewed after a check.",
    "B3": "The lock outlives `nft flush ruleset` and other programs' firewalls; what was flushed is put back.",
    "B4": "Raw frames are stopped too: packet sockets, bridged machines, macvlan.",
    "B5": "Anyone can see it hold: a laboratory runs the public VPN-leak attacks against the real service.",
    "B6": "What the kernel holds is read back and a solver decides whether any packet can leave otherwise.",
    "B7": "Signed releases, more languages, fleet roll-out and metrics.",
}

NOT_YET: Mapping[str, str] = {
    "R3": "a real suspend: systemd reaches sleep.target and comes back, and the machine does not sleep in between.",
    "R17": "a real suspend, as for R3.",
    "R20": "a release, and a signature on it.",
    "R22": "Ubuntu 20.04 itself, and a kernel as old as its own: Debian 11 is the oldest system that is booted, on the "
    "kernel of the machine that boots it.",
    "B5": "the whole matrix in a test: a test plays a part of it, the command `leaktest` all.",
}
"""What a requirement that some test names still lacks, as far as we know."""


@dataclass(frozen=True, order=True)
class Holder:
    """A test that names a requirement."""

    path: str
    name: str

    @property
    def sentence(self) -> str:
        """The test's name as a sentence."""
        return self.name.removeprefix("test_").replace("_", " ")


def _read_marks(node: ast.AST, known: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The numbers in a decorator or a `pytestmark`, even if the mark has a name from earlier in the module."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield from known.get(part.id, ())
        if isinstance(part, ast.Call) and ast.unparse(part.func).split(".")[-1] == "requirement":
            for argument in part.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                    raise ValueError(f"line {part.lineno}: a requirement must be given as text, such as 'R4'")
                yield argument.value


def _read_tests(
    body: list[ast.stmt], inherited: tuple[str, ...], known: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            own = tuple(mark for decorator in node.decorator_list for mark in _read_marks(decorator, known))
            if isinstance(node, ast.ClassDef):
                yield from _read_tests(node.body, (*inherited, *own), known)
            elif node.name.startswith("test_"):
                yield node.name, (*inherited, *own)


def read_module(source: str) -> dict[str, frozenset[str]]:
    """The tests of a module and the requirements that each names.

    Raises:
        ValueError: a marker names something that is not a requirement.
    """
    tree = ast.parse(source)
    known: dict[str, tuple[str, ...]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and (marks := tuple(_read_marks(node.value, known))):
            known |= {target.id: marks for target in node.targets if isinstance(target, ast.Name)}
    found = {
        name: frozenset(marks) for name, marks in _read_tests(tree.body, known.get("pytestmark", ()), known) if marks
    }
    if strangers := sorted({mark for marks in found.values() for mark in marks} - set(CLAIMS)):
        raise ValueError(f"there is no requirement {', '.join(strangers)}")
    return found


def collect_holders(directory: Path) -> dict[str, list[Holder]]:
    """The tests below a directory by the requirement that they name; every requirement is a key."""
    holders: dict[str, list[Holder]] = {number: [] for number in CLAIMS}
    for path in sorted(directory.rglob("test_*.py")):
        for name, numbers in read_module(path.read_text(encoding="utf-8")).items():
            for number in numbers:
                holders[number].append(Holder(path.relative_to(directory.parent).as_posix(), name))
    return {number: sorted(found) for number, found in holders.items()}


def _summarize(number: str, found: list[Holder]) -> str:
    if not found:
        return "not reached yet"
    count = f"{len(found)} test{'s' if len(found) > 1 else ''}"
    return f"[{count}](#{number.lower()})" + (", in part" if number in NOT_YET else "")


def render_table(holders: Mapping[str, list[Holder]]) -> str:
    """The document."""
    reached = sum(bool(found) for found in holders.values())
    lines = [
        "# Requirements, and the tests that hold them",
        "",
        "Made from the tests by `python -m tests.requirements_table`; do not edit. R1 to R25 are the claims of the",
        "security policy, B1 to B7 what this project adds, in our own words. A test names the requirements that it",
        'holds by `@pytest.mark.requirement("R4")`; it goes red when the claim is broken. That a test names a claim',
        "does not mean that the claim is proven in full: what is known to be missing is said with it.",
        "",
        f"{reached} of {len(holders)} are named by at least one test.",
        "",
        "| # | Claim | Held by |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {number} | {CLAIMS[number]} | {_summarize(number, found)} |" for number, found in holders.items()]
    for number, found in holders.items():
        if not found:
            continue
        lines += ["", f"## {number}", ""]
        if number in NOT_YET:
            lines += [f"Not yet: {NOT_YET[number]}", ""]
        lines += [f"- {holder.sentence} ([{Path(holder.path).name}](../{holder.path}))" for holder in found]
    if open_ones := [number for number, found in holders.items() if not found]:
        lines += ["", "## Not reached yet", "", f"No test names {', '.join(open_ones)}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the document."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(render_table(collect_holders(TESTS)), encoding="utf-8")
    sys.stdout.write(f"{TARGET.relative_to(ROOT)} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
