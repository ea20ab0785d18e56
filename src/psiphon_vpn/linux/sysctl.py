"""Kernel settings below /proc/sys. Those of the network may be written with CAP_NET_ADMIN (net/sysctl_net.c)."""

from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/proc/sys")


def apply_sysctls(wanted: Mapping[str, str]) -> list[str]:
    """Write what differs. What this kernel does not have (IPv6, a device) is passed over.

    Returns:
        Names of the settings that could not be made so, with the reason; empty when all hold.
    """
    failed = []
    for name, value in wanted.items():
        path = ROOT / name
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(f"{name.replace('/', '.')}: {error.strerror}")
    return failed


def check_sysctls(wanted: Mapping[str, str]) -> list[str]:
    """The settings that have another value than the wanted one. What this kernel does not have is not changed."""
    wrong = []
    for name, value in wanted.items():
        try:
            if (ROOT / name).read_text().strip() == value:
                continue
        except FileNotFoundError:
            continue
        except OSError:
            pass
        wrong.append(name.replace("/", "."))
    return wrong
