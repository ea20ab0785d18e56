# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Private files on a lab host: no other process sees what is written there, and the machine's files do not change."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from psiphon_lab.namespace import Host, LabError, open_host
from psiphon_lab.private_files import PrivateFiles, open_private_files

pytestmark = pytest.mark.lab

WRITE = "echo x > /etc/psiphon-own-files && echo x > /run/psiphon-own-files && cat /etc/psiphon-own-files"
READ = "cat /etc/psiphon-own-files /run/psiphon-own-files 2>/dev/null | wc -c"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with open_host("alpha", directory=tmp_path) as made:
        yield made


def test_everything_but_the_shared_directory_can_only_be_read(host: Host, tmp_path: Path) -> None:
    with open_private_files(host, shared(tmp_path)) as files:
        for directory in ("/", "/opt", "/var/lib", "/usr/bin", "/tmp", str(tmp_path)):
            name = f"{directory}/psiphon-own-files"
            said = shell(host, files, f'sh -c "mkdir {name}" 2>&1; rmdir {name} 2>&1; true')
            assert "Read-only" in said, directory
            assert not Path(name).exists()
        shell(host, files, f"echo x > {tmp_path}/shared/file")
    assert (tmp_path / "shared" / "file").read_text() == "x\n"


def test_a_shared_directory_below_run_can_be_written_and_the_rest_of_run_is_empty(host: Host) -> None:
    """Inside a virtual machine the world's directory is there."""
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        place = Path(directory) / "own"
        place.mkdir()
        with open_private_files(host, place) as files:
            shell(host, files, f"echo x > {place}/file")
            assert shell(host, files, "find /run -type f") == f"{place}/file"
        assert (place / "file").read_text() == "x\n"


def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir(exist_ok=True)
    return tmp_path / "shared"


def shell(host: Host, files: PrivateFiles, script: str) -> str:
    return host.run(files.command(["sh", "-c", script])).stdout.strip()


def test_written_files_stay_private_and_disappear_at_the_end(host: Host, tmp_path: Path) -> None:
    with open_private_files(host, shared(tmp_path)) as files:
        assert shell(host, files, WRITE) == "x"
        # The next program in the namespace finds what the previous one has written.
        assert shell(host, files, READ) == "4"
        assert host.run(["sh", "-c", READ]).stdout.strip() == "0"
        assert not Path("/etc/psiphon-own-files").exists()
        assert not Path("/run/psiphon-own-files").exists()
        words = files.command(["true"])
    with pytest.raises(LabError):
        host.run(words)  # its holder is gone, and the place with it


def test_of_the_kernel_only_the_hosts_own_network_can_be_set(host: Host, tmp_path: Path) -> None:
    with open_private_files(host, shared(tmp_path)) as files:
        assert shell(host, files, "echo 1 > /proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/ip_forward") == "1"
        for name in ("kernel/panic", "vm/swappiness", "fs/file-max"):
            # Its current value: harmless if it were written.
            write = f'v=$(cat /proc/sys/{name}); sh -c "echo $v > /proc/sys/{name}" 2>&1; true'
            assert "Read-only" in shell(host, files, write), name
        bounding = int(shell(host, files, "sed -n 's/^CapBnd:\t//p' /proc/self/status"), 16)
        assert not bounding & 1 << 16, "CAP_SYS_MODULE"
        assert bounding & 1 << 12, "CAP_NET_ADMIN"
