"""A09c: ufw is enabled, reloaded and disabled."""

from __future__ import annotations

from psiphon_lab.attacks._send import volley
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor, Mode

# How long each takes on an idle machine, seconds: it fills chains one by one, and programs try all the while.
COMMANDS = ((("--force", "enable"), 0.4), (("reload",), 1.6), (("disable",), 1.2))


def run(arena: Arena) -> None:
    """The real ufw with its own settings, in files of its own, while programs and raw frames try to get out."""
    files = arena.open_files()
    for family in ("ip", "ip6"):
        arena.undo("nft", "delete", "table", family, "filter")
    for words, seconds in COMMANDS:
        # While it works, few, so that they do not keep it from working.
        volley(arena, words[-1], seconds=seconds, raw=True, bound=words[-1] != "reload")
        # Whose rules are flushed while it loads them, may fail; what it did until then counts all the same.
        arena.run("ufw", *words, check=arena.mode is not Mode.FLUSHED, files=files)
        arena.settle()


ATTACK = Attack(
    id="A09c",
    name="ufw on and off",
    reference="ufw empties and fills the chains of iptables, sets their policies, and lets out what the user allows",
    plain="Ubuntu's firewall front end is enabled, reloaded and disabled beside ours, with its own settings: whatever "
    "goes out is allowed.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets with ufw alone",
    run=run,
    disturbs=True,
    tools=("ufw", "iptables-nft", "ip6tables-nft", "unshare", "nsenter"),
)
