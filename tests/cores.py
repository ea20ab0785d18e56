# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that look like cores, and a store of the test's own to put them into."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from psiphon_vpn.core import naming
from psiphon_vpn.core.elf import MACHINES
from psiphon_vpn.core.manifest import Manifest, PinnedCore, compute_blob_id
from psiphon_vpn.core.record import CoreRecord, render_record
from psiphon_vpn.core.store import CoreStore, Owner
from psiphon_vpn.system.layout import Layout

MACHINE = os.uname().machine
URL = "https://127.0.0.1:1/{repository}/{commit}/{path}"


def make_elf(body: bytes = b"", *, machine: str = MACHINE, kind: int = 2) -> bytes:
    """A file with the ELF header of a program for a processor, and a body."""
    bits, order, number = MACHINES[machine]
    ident = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    return ident + struct.pack(f"{'<' if order == 1 else '>'}HH", kind, number) + bytes(44) + body


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pin(content: bytes, *, order: int = 1, known: bool = False) -> PinnedCore:
    """A manifest's entry for this content. known: with size and SHA-256."""
    return PinnedCore(
        order=order,
        architecture=MACHINE,
        revision=f"{order:010x}",
        commit=f"{order:040x}",
        path="linux/core",
        blob=compute_blob_id([content], len(content)),
        size=len(content) if known else None,
        sha256=sha256(content) if known else None,
    )


def make_manifest(*cores: PinnedCore, url: str = URL) -> Manifest:
    return Manifest(repository="owner/name", url=url, cores=cores)


def make_store(root: Path, *cores: PinnedCore, machine: str = MACHINE) -> CoreStore:
    """A store below `root`, in which the user who runs the test stands for root and psiphon-user."""
    return CoreStore(
        Layout(root=root),
        owner=Owner(uid=os.geteuid(), gid=os.getegid()),
        root_uid=os.geteuid(),
        machine=machine,
        manifest=make_manifest(*cores),
    )


def install_script(root: Path, script: bytes, *, owner: int) -> Path:
    """Put a script in a core's place (the store itself accepts only ELF programs); returns its record's path."""
    layout, name = Layout(root=root), sha256(script)
    directory = layout.core_dir / name
    directory.mkdir(parents=True)
    binary = directory / "psiphon-tunnel-core"
    binary.write_bytes(script)
    binary.chmod(0o755)
    os.chown(binary, owner, owner)
    record = CoreRecord(
        sha256=name,
        size=len(script),
        blob=compute_blob_id([script], len(script)),
        architecture=MACHINE,
        source="the laboratory",
        installed_at="2026-01-01T00:00:00+00:00",
    )
    (directory / "record.json").write_bytes(render_record(record))
    layout.core_current.symlink_to(name)
    layout.core_name.symlink_to(naming.TARGET)  # as systemd-tmpfiles makes it (system/files.py)
    return layout.core_record


def list_tree(root: Path) -> dict[str, bytes | str]:
    """Every file with its content and every link with its target, except lock files."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and path.name != ".lock":
            found[name] = path.read_bytes()
    return found
