"""psiphon-tunnel-core: its installation, configuration, process and notices."""
