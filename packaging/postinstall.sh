#!/bin/sh
# After the files of a package are in place, also after an upgrade and after a removal that was called off:
# the rules are rendered, the lock is closed and the service started. Nothing here can open a machine.
set -e
/usr/bin/psiphon-vpn system-configure
