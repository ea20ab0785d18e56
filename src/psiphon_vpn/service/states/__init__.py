"""The states, one module each: what each of them answers to every event there is. Pure."""
