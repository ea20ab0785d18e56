"""Installing, updating, releasing, uninstalling: every change to a system is journaled before it is made."""
