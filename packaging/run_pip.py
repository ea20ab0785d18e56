# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs pip for the virtual environment whose Python runs this; the arguments are pip's.

Without a pip in the environment it is the one that Python brings for ensurepip, run from its archive, as ensurepip
itself does. To install pip first, with its byte code, would take longer than all the rest of an installation.
"""

import ensurepip
import importlib.util
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

if importlib.util.find_spec("pip") is None:
    # Distributions have it elsewhere (./configure --with-wheel-pkg-dir).
    places = (sysconfig.get_config_var("WHEEL_PKG_DIR"), Path(ensurepip.__file__).parent / "_bundled")
    found = [path for place in places if place for path in sorted(Path(place).glob("*.whl"))]
    if any(path.name.startswith("pip-") for path in found):
        sys.path[:0] = map(str, found)
    else:
        subprocess.run([sys.executable, "-I", "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
        importlib.invalidate_caches()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
