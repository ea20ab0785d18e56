# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A table of nftables as a value, and its text.

`nft -f` loads the text. It has numbers where names depend on files of the system (protocols, ports), and only syntax
that nft 0.9.3 knows, except in the wire guard and the egress guard, which are loaded separately (R22).
"""

import re
from collections.abc import Container
from dataclasses import dataclass, replace

from psiphon_vpn.policy.values import InterfaceName

_TEXT = re.compile(r'(?:[A-Za-z0-9_ .:,/@=!&|(){}-]|(?<![^ {])"[A-Za-z0-9._/-]+"(?![^ ,}]))*')
"""The characters of a rule: no comment, no end of a line, nothing in quotes that could be more than a name.

A quoted name stands alone. No interface's name contains white space (dev_valid_name in net/core/dev.c), so that no name
with quotation marks in it makes two names of one.
"""
_BARE_INDEX = re.compile(r"\b[io]if (?:[!=]= )?\{? ?\d")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule: its text, and a comment that is stored with it in the kernel (R16)."""

    text: str
    comment: str = ""
    permit: str = ""
    """Name of the row of `permits` that it renders. No rule accepts anything without one."""
    shortcut: bool = False
    """Whether it accepts early what a later rule would accept too (`policy/shortcuts.py`)."""

    def __post_init__(self) -> None:
        """Refuse text with unexpected characters. Values come from `policy.values` alone; this is a second check.

        Raises:
            ValueError: this is not the text of a rule.
        """
        if not _TEXT.fullmatch(self.text) or _BARE_INDEX.search(self.text) or re.search(r'["\\\n]', self.comment):
            raise ValueError("not the text of a rule")
        if bool(self.permit) != (self.text.split()[-1:] == ["accept"]):
            raise ValueError("a rule accepts what a row of the table of permits names, and nothing else does")
        if self.shortcut and not self.permit:
            raise ValueError("a shortcut only accepts")

    def render(self) -> str:
        """The rule as one line of nft."""
        return f'{self.text} comment "{self.comment}"' if self.comment else self.text


@dataclass(frozen=True, kw_only=True)
class Hook:
    """Where a base chain is attached, and its policy."""

    kind: str
    hook: str
    priority: int
    policy: str
    devices: tuple[InterfaceName, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a device whose name was not checked.

        Raises:
            ValueError: there is one.
        """
        if not all(isinstance(name, InterfaceName) for name in self.devices):
            raise ValueError("a device whose name was not checked")

    def render(self) -> str:
        """The chain's type line."""
        names = ", ".join(f'"{name}"' for name in self.devices)
        devices = f" devices = {{ {names} }}" if self.devices else ""
        return f"type {self.kind} hook {self.hook}{devices} priority {self.priority}; policy {self.policy};"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A chain; a base chain if it has a hook."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None

    @property
    def devices(self) -> tuple[InterfaceName, ...]:
        """The devices that it is attached to."""
        return self.hook.devices if self.hook is not None else ()


@dataclass(frozen=True, kw_only=True)
class Set:
    """A set. Its elements are added later, each with its own time-out."""

    name: str
    type: str
    flags: str
    comment: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A whole table, the unit of every change."""

    family: str
    name: str
    chains: tuple[Chain, ...]
    sets: tuple[Set, ...] = ()
    flags: str = ""
    heading: str = ""

    @property
    def devices(self) -> tuple[InterfaceName, ...]:
        """The devices that its chains are attached to."""
        return tuple(device for chain in self.chains for device in chain.devices)

    def leave_out(self, devices: Container[str]) -> "Table":
        """This table without the chains of some devices."""
        left = (chain for chain in self.chains if not any(name in devices for name in chain.devices))
        return replace(self, chains=tuple(left))

    def leave_out_shortcuts(self) -> "Table":
        """This table without its shortcuts. It gives every packet the same verdict."""
        return replace(
            self,
            chains=tuple(
                replace(chain, rules=tuple(rule for rule in chain.rules if not rule.shortcut)) for chain in self.chains
            ),
        )

    def mark_accepted(self, bit: int) -> "Table":
        """This table, with a bit of the packet's mark set on everything that it accepts.

        Args:
            bit: bit of the mark; the other bits stay.
        """
        return replace(
            self,
            chains=tuple(
                replace(chain, rules=tuple(_mark_accepted(rule, bit) for rule in chain.rules)) for chain in self.chains
            ),
        )

    def render(self, *, name: str | None = None, flags: str | None = None) -> str:
        """The table's definition as nft text.

        Args:
            name: another name for it (the scratch copy that readings are compared with).
            flags: other table flags ("dormant" for that copy).
        """
        lines = [f"# {line}".rstrip() for line in self.heading.splitlines()]
        lines.append(f"table {self.family} {name or self.name} {{")
        shown = self.flags if flags is None else flags
        if shown:
            lines.append(f"\tflags {shown}")
        for item in self.sets:
            lines += [f"\t# {item.comment}", f"\tset {item.name} {{", f"\t\ttype {item.type}"]
            lines += [f"\t\tflags {item.flags}", "\t}"]
        for chain in self.chains:
            lines.append(f"\tchain {chain.name} {{")
            if chain.hook:
                lines.append(f"\t\t{chain.hook.render()}")
            lines += [f"\t\t{rule.render()}" for rule in chain.rules]
            lines.append("\t}")
        lines.append("}")
        return "\n".join(lines) + "\n"

    def render_replacement(self) -> str:
        """The text that replaces this table, whatever it contains, in one transaction, and touches no other table.

        The first line makes sure that there is a table to delete: `delete table` fails for an absent one, and `destroy
        table` needs nft 1.0.7. It has the table's flags too: the kernel does not turn an owned table into one without
        an owner or the reverse, so that only the owner can replace an owned table.
        """
        flags = f" {{\n\tflags {self.flags}\n}}" if self.flags else ""
        return f"table {self.family} {self.name}{flags}\ndelete table {self.family} {self.name}\n{self.render()}"

    def differs_in_rules_alone(self, other: "Table") -> bool:
        """Whether another table differs from this one only in the rules of its chains (see `render_amendment`)."""
        return replace(self, heading="", chains=()) == replace(other, heading="", chains=()) and [
            (chain.name, chain.hook) for chain in self.chains
        ] == [(chain.name, chain.hook) for chain in other.chains]

    def render_amendment(self, before: "Table") -> str:
        """The text that changes a table that differs in rules alone into this one. Elements of sets stay.

        Args:
            before: the table that is loaded.
        """
        lines = []
        for old, new in zip(before.chains, self.chains, strict=True):
            if old.rules != new.rules:
                chain = f"{self.family} {self.name} {new.name}"
                lines += [f"flush chain {chain}", *(f"add rule {chain} {rule.render()}" for rule in new.rules)]
        return "".join(f"{line}\n" for line in lines)


def _mark_accepted(rule: Rule, bit: int) -> Rule:
    matched, accepts, rest = rule.text.rpartition("accept")
    if not accepts or rest:
        return rule
    return replace(rule, text=f"{matched}meta mark set meta mark or {bit:#x} accept")
