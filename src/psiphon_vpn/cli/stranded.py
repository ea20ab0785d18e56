"""`help stranded`: the one page for somebody who cannot get online. docs/stranded.md is this text."""

from psiphon_vpn.i18n import _


def render_stranded() -> str:
    """The page. Needs no network, no service, no root."""
    return _("""\
# You cannot get online

While psiphon-vpn is installed, a computer that is offline is a computer that is protected. Nothing here needs the
network. Go through it from the top; the last two steps open the network, the others do not.

## 1. What is wrong?

    sudo psiphon-vpn status
    sudo psiphon-vpn diagnose
    sudo journalctl -b -u psiphon-vpn

`status` says in one line what is missing and what to do. `diagnose` looks at everything, and has a next step for each
thing that is not as it should be. The journal says what happened.

## 2. What it says, and what helps

- **There is no tunnel core**, or it is damaged: bring one from another computer and say what its SHA-256 must be:

      sudo psiphon-vpn update --core-file FILE --sha256 HEX

- **The configuration is not usable**: mend the line that is named in /etc/psiphon-vpn/config.toml, then
  `sudo psiphon-vpn reload`.
- **It tries to connect and does not**: your network may block what it tries, or there is no list of servers. Try
  another network, or another country in the configuration. Is the clock right? `date` must not be days off.
- **The service does not run**: `sudo psiphon-vpn start`.
- **You stopped it**: `sudo psiphon-vpn start`. Stopping does not open.
- **The network has a page to log in to** (hotels, trains): it cannot be reached while the computer is locked. Log in
  with another device, or see step 4.
- **No network card is up after a start**: the lock could not be loaded, and interfaces stay down until it is.
  `sudo journalctl -b -u psiphon-killswitch` says why. When it is mended: `sudo systemctl start psiphon-killswitch`,
  then restart the network manager or the computer.

## 3. The installation itself is broken

Install it again, from the checkout or the package that you installed from. That never opens:

    sudo ./Psiphon-Linux-VPN-Service-Setup.sh install
    sudo apt install --reinstall ./psiphon-vpn_VERSION_ARCH.deb

**The record is damaged** (/var/lib/psiphon-vpn/journal.json cannot be read): move it away and install again, from the
same version. The new record knows which files have to be removed. It no longer knows what stood there before, and takes
the user psiphon-user, the kernel settings and the directories /etc/psiphon-vpn, /usr/lib/psiphon-vpn and
/var/lib/psiphon-vpn for yours: they stay after step 5, locked in nothing.

## 4. Open the network for a while

    sudo psiphon-vpn release

asks for a word and then opens the network, in the clear, until `sudo psiphon-vpn start` or the next boot. `status`
shows it in red all the while. Whoever watches your connection sees what you do.

## 5. Remove it

    sudo psiphon-vpn uninstall
    sudo apt remove psiphon-vpn        # or: sudo dnf remove psiphon-vpn

The first if you installed from a checkout, the second from a package. Every change is undone; the network opens last.

After a removal that was cut off, by the power say, the computer may be locked still: run the same command again. If
there is no command psiphon-vpn any more, do step 3 first.

## 6. When not even that works

Start the computer with `systemd.mask=psiphon-killswitch.service systemd.mask=psiphon-guard.service
systemd.mask=psiphon-vpn.service systemd.unit=rescue.target` added to the kernel's command line (in GRUB: `e`, the line
that begins with `linux`, then Ctrl-X). Nothing of psiphon-vpn is loaded then; interfaces that need the lock stay down.
Then run step 5, and restart.

Whoever takes the rules away by hand (`nft flush ruleset`) has to take the filters away too, or nothing leaves by the
cards: `sudo tc filter del dev INTERFACE egress pref 1`, for each of them. A reboot does the same.
""")
