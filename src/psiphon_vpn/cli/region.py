# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`region`: lists the countries in which traffic can leave Psiphon, and sets one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import client
from psiphon_vpn.cli.config_edit import FILE, change, need_root
from psiphon_vpn.cli.view import find_width
from psiphon_vpn.countries import find_country, find_similar, list_countries, name_region
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.next_step import Need, advise, need_set_up
from psiphon_vpn.wrapping import wrap

BEST: Final = ("best", "any", "auto", "fastest", "")
"""Words for no country in particular; the first is the one in the documents."""
SETTING: Final = "egress_region"


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What is known about the regions.

    Attributes:
        servers: number of known servers by code; empty if no list is installed.
        available: codes that the tunnel program can use now; None if it has not said.
        chosen: code in the configuration, empty for the best; None if unknown.
    """

    servers: Mapping[str, int]
    available: frozenset[str] | None
    chosen: str | None

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes with servers."""
        return tuple(sorted({*self.servers, *(self.available or ())}))


def _complete_region(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    words = [BEST[0], *(country.code for country in list_countries())]
    return [word for word in words if word.casefold().startswith(begun.casefold())]


@click.command(
    help=_(
        "List the countries in which your traffic can leave Psiphon, or set one: by its code (DE), its name (Germany), "
        "or 'best'. Applied at once."
    ),
    short_help=_("List the countries for your traffic's exit, or set one."),
)
@click.argument("words", nargs=-1, metavar="[REGION]", shell_complete=_complete_region)
@click.option("--anyway", is_flag=True, help=_("Set it although no server is known there."))
@click.option("--json", "as_json", is_flag=True, help=_("Print the list as one JSON object for programs."))
@FILE
@click.pass_obj
def region(runtime_dir: Path, *, words: tuple[str, ...], anyway: bool, as_json: bool, path: Path | None) -> int:
    """List, or set."""
    if not words:
        regions = find_regions(runtime_dir)
        click.echo(_render_json(regions) if as_json else _render(regions))
        return 0
    need_root("region")
    if path is None:
        need_set_up(runtime_dir, _what())
    from psiphon_vpn.editing.catalogue import find_setting
    from psiphon_vpn.editing.requests import Change

    code = choose_region(" ".join(words), find_regions(runtime_dir), anyway=anyway)
    meaning = _("Your traffic is to leave Psiphon in the country with the best server.")
    if code:
        meaning = _("Your traffic is to leave Psiphon in {name} ({code}).").format(name=name_region(code), code=code)
    wanted = Change(setting=find_setting(SETTING), typed=json.dumps(code))
    return change(runtime_dir, [wanted], path=path, meaning=meaning)


def choose_region(typed: str, regions: Regions, *, anyway: bool) -> str:
    """The code that a user means; empty for the best.

    Raises:
        UserError: there is no such country, or no server in it and not `anyway`.
    """
    if typed.strip().casefold() in BEST:
        return BEST[-1]
    country = find_country(typed)
    if country is None:
        raise _refuse(_("there is no country of this name or code"), typed, regions)
    if regions.codes and country.code not in regions.codes and not anyway:
        why = _("no Psiphon server is known in {name} ({code})").format(name=country.name, code=country.code)
        raise UserError(
            _what(),
            why,
            _("There are: {codes}. To set it anyway: sudo psiphon-vpn region {code} --anyway").format(
                codes=", ".join(regions.codes), code=country.code
            ),
        )
    return country.code


def _refuse(why: str, typed: str, regions: Regions) -> UserError:
    similar = find_similar(typed)
    if similar is not None:
        text = _("Did you mean {name} ({code})? To see all: psiphon-vpn region")
        return UserError(_what(), why, text.format(name=similar.name, code=similar.code))
    if regions.codes:
        return UserError(_what(), why, _("There are: {codes}").format(codes=", ".join(regions.codes)))
    return UserError(_what(), why, _("Give two letters, such as DE, or a name in English, such as Germany."))


def _advise() -> str:
    return advise(Need.SERVERS, Layout()).sentence


def _what() -> str:
    return _("The region was not changed")


def find_regions(runtime_dir: Path) -> Regions:
    """What the installed list and the running service know."""
    from psiphon_vpn.servers.store import ServerStore

    servers: dict[str, int] = {}
    with contextlib.suppress(UserError, OSError):
        if (record := ServerStore(Layout()).read_current()) is not None:
            servers.update({code: count for code, count in record.by_region.items() if _is_code(code)})
    status: client.Status = {}
    with contextlib.suppress(UserError):
        status = client.request_status(runtime_dir)
    available = status.get("regions_available")
    chosen = status.get("region_wanted", "") or ("" if "region_wanted" in status else None)
    return Regions(
        servers=servers,
        available=frozenset(filter(_is_code, available)) if isinstance(available, list) and available else None,
        chosen=str(chosen) if chosen == "" or _is_code(chosen) else None,
    )


def _is_code(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[A-Z]{2}", value) is not None


def _render_json(regions: Regions) -> str:
    listed = [
        {
            "code": code,
            "name": name_region(code),
            "servers": regions.servers.get(code) if regions.servers else None,
            "available": None if regions.available is None else code in regions.available,
        }
        for code in regions.codes
    ]
    return json.dumps({"chosen": regions.chosen, "regions": listed})


def _render(regions: Regions) -> str:
    lines = []
    if regions.codes:
        rows = [_render_row(code, regions) for code in sorted(regions.codes, key=name_region)]
        heads = ("", _("Code"), _("Country"), _("Servers"), _("Now"))
        widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (heads, *rows)
        ]
        lines.append("")
    else:
        return "\n".join(wrap(f"{_('No Psiphon server is known yet.')} {_advise()}", find_width()))
    if regions.chosen:
        text = _("Set now (*): {name}.")
        lines.append(text.format(name=name_region(regions.chosen)))
    elif regions.chosen is not None:
        lines.append(_("Set now: the country with the best server."))
    lines.append(_("To set one: sudo psiphon-vpn region CODE, or best."))
    return "\n".join(lines)


def _render_row(code: str, regions: Regions) -> tuple[str, ...]:
    now = "?"
    if regions.available is not None:
        now = _("available") if code in regions.available else _("not available")
    count = str(regions.servers.get(code, 0)) if regions.servers else "?"
    return ("*" if code == regions.chosen else "", code, name_region(code), count, now)


COMMANDS: Final = (region,)
