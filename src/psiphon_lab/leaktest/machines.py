# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The machines that `leaktest --machine` names: virtual ones, each with a kernel of Debian, or one that a user has.

Only the kernel is of that release. Its programs (nft, iproute2, Python) are this machine's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_lab.guest.kernels import NAMED, Kernel, fetch_kernel, read_version, take_kernel
from psiphon_lab.guest.obstacles import find_obstacle
from psiphon_lab.leaktest.results_file import ResultsFile, Subject
from psiphon_lab.namespace import LabError
from psiphon_lab.revision import read_commit
from psiphon_vpn import __version__
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _

PREFIX: Final = "vm:"
ALL: Final = f"{PREFIX}all"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A machine. results: the file for its cells, or None."""

    name: str
    kernel: Kernel
    results: Path | None

    def open_results(self, directory: Path) -> ResultsFile:
        """Its results so far. directory: for the file if none was chosen. Raises LabError."""
        path = self.results or directory / f"{self.name.removeprefix(PREFIX)}.jsonl"
        tested = Subject(machine=self.name, kernel=self.kernel.version, version=__version__, commit=read_commit())
        return ResultsFile(path, tested)


def list_names() -> tuple[str, ...]:
    """What can be chosen."""
    return (*(f"{PREFIX}{name}" for name in NAMED), ALL)


def choose_machines(
    name: str | None, *, image: Path | None, modules: Path | None, results: Path | None, directory: Path
) -> tuple[list[Chosen], list[str]]:
    """The chosen machines with their kernels, and why others of them cannot be had.

    Args:
        name: one of `list_names`; None: the user's own kernel.
        image: the user's own kernel, called vmlinuz-VERSION.
        modules: its directory of modules; None: /lib/modules/VERSION.
        results: the file for the cells; with several machines, a directory of such files.
        directory: an existing one for unpacked modules.

    Raises:
        UserError: there is no such machine, or none can be had here.
    """
    what = _("The leak test cannot start")
    if name is not None and name not in list_names():
        raise UserError(
            what,
            _("there is no machine {name}").format(name=name),
            _("The machines are: {names}.").format(names=", ".join(list_names())),
        )
    if (obstacle := find_obstacle()) is not None:
        raise UserError(
            what,
            _("no virtual machine can be started here: {why}").format(why=obstacle),
            _("Run it without --machine, in namespaces."),
        )
    if image is not None:
        version = read_version(image)
        place = modules or Path("/lib/modules", version)
        if not place.is_dir():
            raise UserError(
                what,
                _("there are no modules in {path}").format(path=place),
                _("Give the directory with --modules."),
            )
        kernel = take_kernel(image, modules=place, directory=directory)
        return [Chosen(name=f"{PREFIX}{version}", kernel=kernel, results=results)], []
    assert name is not None
    names = list(NAMED) if name == ALL else [name.removeprefix(PREFIX)]
    chosen, lacking = [], []
    for one in names:
        try:
            kernel = fetch_kernel(one)
        except LabError as error:
            lacking.append(f"{PREFIX}{one}: {str(error).splitlines()[0]}")
            continue
        path = results / f"{one}.jsonl" if results is not None and name == ALL else results
        chosen.append(Chosen(name=f"{PREFIX}{one}", kernel=kernel, results=path))
    if not chosen:
        raise UserError(what, "; ".join(lacking), _("Name another kernel by --kernel."))
    return chosen, lacking
