"""The machine's network, and the choice of an uplink: pure decisions on what netlink lists."""
