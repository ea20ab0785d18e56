"""Installing, updating, releasing, uninstalling: changes to a system, journaled before they are made."""
