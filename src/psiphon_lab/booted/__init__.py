"""Real Debian systems, booted with real systemd inside the laboratory's client."""
