"""`--report FILE`: one text about this machine's lock that a person can read before sending it to somebody.

A text and not an archive: whoever has to fear something must be able to see what is in it. Everything goes through the
redactor, and the parts that are the most telling (other programs' logs, whole configuration files) are not in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import click

from psiphon_vpn import __version__
from psiphon_vpn.config import Settings
from psiphon_vpn.diagnose.facts import PROC, Facts
from psiphon_vpn.diagnose.model import Result, Unknowable
from psiphon_vpn.diagnose.redact import Redactor
from psiphon_vpn.diagnose.render import render_text
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import LAYERS
from psiphon_vpn.system import layout as places

MODE: Final = 0o600
JOURNAL_LINES: Final = 200
FIRST_USER: Final = 1000
"""uid of the first person on Linux systems (login.defs(5), UID_MIN)."""
COMMANDS: Final = (
    # Our own tables only: comments in others' are their users' own words.
    ("nft", "list", "tables"),
    *(("nft", "-s", "list", "table", *table.address) for table in LAYERS),
    ("ip", "-br", "link"),
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("systemctl", "--no-pager", "cat", *places.UNITS),
    ("systemctl", "--no-pager", "--no-legend", "list-units", *places.UNITS),
    ("journalctl", "--no-pager", "--boot", "--output=short-iso", f"--lines={JOURNAL_LINES}",
     *(f"--unit={name}" for name in places.UNITS)),
)  # fmt: skip
SCHEMES: Final = frozenset({"http", "https", "socks4a", "socks5"})
OWN_LINKS: Final = ("lo", names.TUN_NAME)
WIRELESS: Final = (
    ("/etc/NetworkManager/system-connections", re.compile(r"^(?:ssid|id)=(.+)$", re.MULTILINE)),
    ("/etc/wpa_supplicant", re.compile(r"^\s*ssid=\"?(.+?)\"?\s*$", re.MULTILINE)),
    ("/etc/netplan", re.compile(r"^\s*\"?([^\":]+)\"?:\s*$", re.MULTILINE)),
)


def find_known(facts: Facts) -> dict[str, set[str]]:
    """What is known of this machine's user, by kind. What cannot be read is left out: forms are looked for anyhow."""
    known: dict[str, set[str]] = {"host": set(), "user": set(), "network": set(), "interface": set(), "setting": set()}
    known["host"] |= set(_read_hosts(facts))
    for line in _read(facts, facts.at("/etc/passwd")).splitlines():
        fields = line.split(":")
        if len(fields) > 5 and fields[2].isdigit() and int(fields[2]) >= FIRST_USER and fields[0] != "nobody":
            known["user"] |= {fields[0], fields[5].rsplit("/", 1)[-1], *re.split(r"[,\s]+", fields[4])}
    known["network"] |= set(_read_networks(facts))
    try:
        links = [link.name for link in facts.network.snapshot.interfaces]
    except Unknowable:
        links = []
    known["interface"] |= {name for name in links if name not in OWN_LINKS}
    known["setting"] |= set(_read_settings(facts.settings_or_default))
    return known


def _read(facts: Facts, path: Path) -> str:
    try:
        return facts.find_text(path) or ""
    except Unknowable:
        return ""


def _read_hosts(facts: Facts) -> Iterator[str]:
    for path in (
        facts.at("/etc/hostname"),
        PROC / "sys" / "kernel" / "hostname",
        PROC / "sys" / "kernel" / "domainname",
    ):
        name = _read(facts, path).strip()
        yield from (name, name.split(".", 1)[0])
    for line in _read(facts, facts.at("/etc/hosts")).splitlines():
        yield from (word for word in line.split("#")[0].split()[1:] if not word.startswith(("localhost", "ip6-")))
    for line in _read(facts, facts.at("/etc/resolv.conf")).splitlines():
        if line.startswith(("search", "domain")):
            yield from line.split()[1:]
    yield _read(facts, facts.at("/etc/machine-id")).strip()


def _read_networks(facts: Facts) -> Iterator[str]:
    for directory, pattern in WIRELESS:
        for name in _list(facts, facts.at(directory)):
            yield Path(name).stem
            yield from (match.strip() for match in pattern.findall(_read(facts, facts.at(directory) / name)))
    yield from (Path(name).stem for name in _list(facts, facts.at("/var/lib/iwd")))


def _list(facts: Facts, path: Path) -> tuple[str, ...]:
    try:
        return facts.list_names(path)
    except Unknowable:
        return ()


def _read_settings(settings: Settings) -> Iterator[str]:
    """Every text in the configuration but country codes and words such as "info"."""
    values: list[object] = [settings.upstream_proxy, *settings.bootstrap_dns, *settings.core_advanced.values()]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += [*value.values()]
        elif isinstance(value, list | tuple):
            values += value
        elif isinstance(value, str):
            # Whole, and in parts: an error may name the password of a proxy without the rest of its URL.
            for text in (value, unquote(value)):
                parts = re.split(r"[^\w\-]+", text)
                yield from (part for part in (text, *parts) if len(part) > 2 and part.lower() not in SCHEMES)


def render_report(facts: Facts, results: Sequence[Result]) -> str:
    """The whole report, redacted."""
    sections = [("checks", click.unstyle(render_text(results, width=100)))]
    sections.append(("versions", _render_versions(facts)))
    for argv in COMMANDS:
        answer = facts.system.run(argv)
        text = answer.out + (f"\n{answer.trouble or answer.err}" if not answer.good else "")
        sections.append((" ".join(argv), text.strip()))
    heading = _(
        "A report of psiphon-vpn diagnose. Addresses, names and secrets were replaced by <...>. "
        "Read it before you give it to anybody: it may still tell which programs you use."
    )
    redactor = Redactor(find_known(facts))
    # Section by section: a command's own words (a table called "filter") are not the user's.
    body = "".join(f"\n== {title}\n{_clean(redactor.redact(text))}\n" for title, text in sections)
    return f"{heading}\n{body}"


def _clean(text: str) -> str:
    """Without what a terminal would obey: a log may hold what others said."""
    return "\n".join(
        "".join(char if char.isprintable() or char == "\t" else "?" for char in line) for line in text.split("\n")
    )


def _render_versions(facts: Facts) -> str:
    release = _read(facts, PROC / "sys" / "kernel" / "osrelease").strip()
    distribution = [
        line.partition("=")[2].strip('"')
        for line in _read(facts, facts.at("/etc/os-release")).splitlines()
        if line.startswith("PRETTY_NAME=")
    ]
    # What stands behind the numbers names who built it, and sometimes where.
    kernel = re.sub(r"[^0-9.].*", "", release)
    lines = [
        f"psiphon-vpn {__version__}",
        f"Linux {kernel}",
        *distribution,
        str(facts.rules.version),
    ]
    return "\n".join(lines)


class ReportError(UserError):
    """The report cannot be written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            _("The report cannot be written"),
            f"{path}: {why}",
            _("Name a file that does not exist yet, in a directory that is there."),
        )


def write_report(path: Path, text: str) -> None:
    """Write it to a new file that only its owner can read.

    Raises:
        ReportError: there is something of that name already, a link too, or the file cannot be made.
    """
    try:
        # O_EXCL follows no link either, not even a dangling one (open(2)).
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    except FileExistsError:
        raise ReportError(path, _("it exists already")) from None
    except OSError as error:
        raise ReportError(path, error.strerror or str(error)) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            os.fchmod(file.fileno(), MODE)
            file.write(text)
    except OSError as error:
        raise ReportError(path, error.strerror or str(error)) from error
