"""The daemon: a pure state machine, and the effects, events and control socket around it."""
