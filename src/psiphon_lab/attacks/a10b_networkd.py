# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A10b: systemd-networkd starts, and removes routing rules of other programs."""

from __future__ import annotations

from psiphon_lab.attacks.a10_routes_flushed import restore_rules
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import volley

NETWORKD = "/lib/systemd/systemd-networkd"
# In a mount namespace, so that the host's files do not change. /sys is read-only, as in a container, where networkd
# does not wait for udev.
START = (
    "mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && mkdir -p /run/systemd/netif/links "
    "/run/systemd/netif/leases /run/systemd/netif/lldp /run/systemd/network && chmod -R 755 /run/systemd && "
    "mount -o remount,ro /sys; exec " + NETWORKD
)


def run(trial: Trial) -> None:
    """Run the real networkd twice while programs send. Without configuration files it manages no link."""
    volley(trial, "meanwhile", seconds=1.6)
    trial.cleanups.callback(restore_rules, trial)
    before = trial.client.run(["ip", "rule"], check=False).stdout
    for _ in range(2):
        child = trial.spawn(["unshare", "-m", "sh", "-c", START])
        trial.wait(0.6)
        if child.poll() is not None:
            trial.say(f"networkd ended with code {child.returncode}")
        child.terminate()
        child.wait(timeout=5)
    after = trial.client.run(["ip", "rule"], check=False).stdout
    trial.say("routing rules are as before" if before == after else "routing rules changed meanwhile")


ATTACK = Attack(
    id="A10b",
    name="systemd-networkd restarts",
    reference="ManageForeignRoutingPolicyRules= of networkd.conf(5): rules that it does not know are removed",
    summary="The network service of systemd is restarted, and removes routing rules that are not its own.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    tools=(NETWORKD, "unshare"),
)
