"""Loads of pyroute2 what the daemon uses and not the rest: 7 MiB of memory less, and half of the time to start.

Its package imports every part of itself: an SQL database of the network, a file server, wireless, wireguard and more.
The daemon talks rtnetlink, which is one module. Only for the daemon's own process: whoever else imports pyroute2 gets
all of it.
"""

import importlib
import importlib.util
import sys
import types

PACKAGE = "pyroute2"


def load_netlink_alone() -> None:
    """Put a package of that name in place that has `AsyncIPRoute` alone; its modules are found as ever.

    Does nothing where pyroute2 is loaded already.
    """
    if PACKAGE in sys.modules:
        return
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.submodule_search_locations is None:
        return  # the import that follows says so
    package = types.ModuleType(PACKAGE)
    package.__path__ = list(found.submodule_search_locations)
    package.__spec__ = found
    sys.modules[PACKAGE] = package
    try:
        module = importlib.import_module(f"{PACKAGE}.iproute.linux")
    except ImportError:
        # Another version, put together in another way: then all of it.
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        return
    vars(package)["AsyncIPRoute"] = module.AsyncIPRoute
