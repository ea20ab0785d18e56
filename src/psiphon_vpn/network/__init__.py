"""What the network of this machine is, and which way out is taken: pure decisions on what netlink tells."""
