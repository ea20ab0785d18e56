"""The states, one module each, with its answer to every event. Pure."""
