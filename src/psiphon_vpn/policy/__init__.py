"""The security policy as values: what may pass in each state. Nothing in this package touches the system."""
