# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd runs before any unit, with stand-ins for nft, ip and the kernel's list of interfaces."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.scratch_machine import make_machine

from psiphon_vpn.system.acting import collect_acting_files
from psiphon_vpn.system.files import render_system_files
from psiphon_vpn.system.install import set_up
from psiphon_vpn.system.layout import KILLSWITCH_UNIT, Layout
from psiphon_vpn.system.units import render_generator, render_units

EARLY = "guard early guard.nft"
UP, DOWN = "0x1003", "0x1002"
# The stand-in's chain stands once a file was loaded that is not empty, as in the kernel.
NFT = """\
#!/bin/sh
echo "nft $*" >>{base}/done
case "$1" in
    -c) [ -e {base}/stands ] ;;
    -f) ! grep -q broken "$2" || exit 1; [ ! -s "$2" ] || touch {base}/stands ;;
esac
"""


class Bench:
    """The script in a directory: what it did, and the interfaces that it sees."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.rules = base / "rules"
        self.rules.mkdir()
        self.write_rules(boot="rules", drop="rules")
        for number, (name, flags) in enumerate({"lo": UP, "eth0": UP, "eth1": DOWN}.items(), start=1):
            link = base / "net" / name
            link.mkdir(parents=True)
            (link / "ifindex").write_text(f"{number}\n")
            (link / "flags").write_text(f"{flags}\n")
        text = render_generator()
        layout = Layout()
        for path, place in {
            str(layout.rules_dir): "rules",
            str(layout.guard_script): "guard",
            str(layout.boot_lock_mark): "booted",
            str(layout.release_record): "released",
            "/sys/class/net": "net",
        }.items():
            assert path in text
            text = text.replace(path, str(base / place))
        self._script = self._write("generator", text.replace("PATH=", f"PATH={base}:"))
        self._write("nft", NFT.format(base=base))
        self._write("guard", f'#!/bin/sh\necho "guard $*" >>{base}/done\n')
        self._write("ip", f'#!/bin/sh\necho "ip $*" >>{base}/done\n')

    def write_rules(self, *, boot: str, drop: str) -> None:
        for name, text in {"boot.nft": boot, "drop.nft": drop}.items():
            (self.rules / name).write_text(text)

    def _write(self, name: str, text: str) -> Path:
        path = self.base / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def boot(self) -> list[str]:
        """What it did that changes something."""
        done = subprocess.run(
            ["/bin/sh", str(self._script), "a", "b", "c"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        said = self.base / "done"
        found = said.read_text().splitlines() if said.exists() else []
        said.unlink(missing_ok=True)
        return [line.replace(f"{self.rules}/", "") for line in found if not line.startswith("nft -c")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.requirement("R2")
def test_with_an_interface_that_is_up_already_the_boot_lock_is_loaded_before_any_unit(bench: Bench) -> None:
    assert bench.boot() == ["nft -f boot.nft", EARLY]


@pytest.mark.requirement("R2", "B4")
def test_without_a_guard_the_boot_lock_is_loaded_all_the_same(bench: Bench) -> None:
    (bench.base / "guard").write_text("#!/bin/sh\nexit 1\n")
    assert bench.boot() == ["nft -f boot.nft"]


def test_without_one_nothing_is_done(bench: Bench) -> None:
    (bench.base / "net/eth0/flags").write_text(f"{DOWN}\n")
    assert bench.boot() == []


@pytest.mark.requirement("R1", "R2")
@pytest.mark.parametrize("damaged", ["", "broken"])
def test_a_damaged_file_is_no_lock(bench: Bench, damaged: str) -> None:
    bench.write_rules(boot=damaged, drop="rules")
    assert bench.boot() == ["nft -f boot.nft", "nft -f drop.nft", EARLY]
    (bench.base / "stands").unlink()
    bench.write_rules(boot=damaged, drop=damaged)
    assert bench.boot() == ["nft -f boot.nft", "nft -f drop.nft", "ip link set dev eth0 down"]


def test_when_systemd_reads_its_units_again_it_does_nothing_so_that_released_stays_released(bench: Bench) -> None:
    (bench.base / "booted").mkdir()
    assert bench.boot() == []
    assert f"RuntimeDirectory={Layout().boot_lock_mark.name}\n" in render_units()[KILLSWITCH_UNIT]


@pytest.mark.requirement("R1")
def test_while_a_machine_is_set_up_the_mark_comes_before_the_generator(tmp_path: Path) -> None:
    """The program is fetched in the open, after the rules are there: systemd may read its units again at any time."""
    layout, said = Layout(), list[str]()
    set_up(make_machine(tmp_path).platform, collect_acting_files(), say=said.append, dry_run=True)
    [mark] = [number for number, line in enumerate(said) if f"systemd-tmpfiles --create {layout.tmpfiles}" in line]
    [generator] = [number for number, line in enumerate(said) if str(layout.generator) in line]
    assert mark < generator
    declared = render_system_files(layout)[layout.tmpfiles].splitlines()
    assert f"d {layout.boot_lock_mark} 0755 root root -" in declared


@pytest.mark.parametrize("state", ["released", "stands", "not set up"])
def test_it_changes_nothing_where_there_is_nothing_to_lock(bench: Bench, state: str) -> None:
    if state == "not set up":
        for file in bench.rules.iterdir():
            file.unlink()
        bench.rules.rmdir()
    else:
        (bench.base / state).touch()
    assert bench.boot() == []
