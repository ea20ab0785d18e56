# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A09c: ufw is enabled, reloaded and disabled."""

from __future__ import annotations

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley

# How long each takes on an idle machine, seconds. ufw fills chains one by one; programs send during all of it.
COMMANDS = ((("--force", "enable"), 0.4), (("reload",), 1.6), (("disable",), 1.2))


def run(trial: Trial) -> None:
    """The real ufw with its own settings, in private files, while programs send packets and raw frames."""
    files = trial.open_files()
    for family in ("ip", "ip6"):
        trial.undo("nft", "delete", "table", family, "filter")
    for words, seconds in COMMANDS:
        # Fewer shots during the reload, so that they do not slow it down.
        volley(trial, words[-1], seconds=seconds, raw=True, bound=words[-1] != "reload")
        # In the flushed state its rules may be flushed while it loads them, and it may fail. What it did counts.
        trial.run("ufw", *words, check=trial.mode is not Mode.FLUSHED, files=files)
        trial.settle()


ATTACK = Attack(
    id="A09c",
    name="ufw on and off",
    reference="ufw empties and fills the chains of iptables, sets their policies, and lets out what the user allows",
    summary="Ubuntu's firewall front end is enabled, reloaded and disabled while the lock stands. Its settings allow "
    "everything outgoing.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets with ufw alone",
    run=run,
    disturbs=True,
    tools=("ufw", "iptables-nft", "ip6tables-nft", "unshare", "nsenter"),
)
