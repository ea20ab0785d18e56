"""Why a check gives no answer: raised by facts, which know nothing of checks."""


class Skip(Exception):
    """The check does not apply here; the text says why."""


class Unknowable(Exception):
    """What the check needs to know cannot be read; the text says why."""
