"""The kernel at the edge: nftables, netlink, the TUN device, sysctls. Decisions live elsewhere."""
