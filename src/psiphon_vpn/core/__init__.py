"""psiphon-tunnel-core as a part: its configuration, its process and its notices."""
