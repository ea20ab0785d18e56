"""A10b: systemd-networkd starts, and tidies up what it does not know."""

from __future__ import annotations

from psiphon_lab.attacks._send import volley
from psiphon_lab.attacks.a10_routes_flushed import restore_rules
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor

NETWORKD = "/lib/systemd/systemd-networkd"
# In the machine's own mount namespace: the files of the host are not touched, and a container has no udev to wait for.
START = (
    "mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && mkdir -p /run/systemd/netif/links "
    "/run/systemd/netif/leases /run/systemd/netif/lldp /run/systemd/network && chmod -R 755 /run/systemd && "
    "mount -o remount,ro /sys; exec " + NETWORKD
)


def run(arena: Arena) -> None:
    """The real networkd, twice, while programs try to get out. Without files of its own it manages no link."""
    volley(arena, "meanwhile", seconds=1.6)
    arena.cleanups.callback(restore_rules, arena)
    before = arena.client.run(["ip", "rule"], check=False).stdout
    for _ in range(2):
        child = arena.spawn(["unshare", "-m", "sh", "-c", START])
        arena.wait(0.6)
        if child.poll() is not None:
            arena.say(f"networkd ended with code {child.returncode}")
        child.terminate()
        child.wait(timeout=5)
    after = arena.client.run(["ip", "rule"], check=False).stdout
    arena.say("routing rules are as before" if before == after else "routing rules changed meanwhile")


ATTACK = Attack(
    id="A10b",
    name="systemd-networkd restarts",
    reference="ManageForeignRoutingPolicyRules= of networkd.conf(5): rules that it does not know are removed",
    plain="The network service of systemd is restarted, and removes routing rules that are not its own.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
    disturbs=True,
    tools=(NETWORKD, "unshare"),
)
