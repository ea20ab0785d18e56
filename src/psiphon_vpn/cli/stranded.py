# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`help stranded`: the one page for somebody who cannot get online. docs/stranded.md is this text."""

from psiphon_vpn.i18n import _


def render_stranded() -> str:
    """The page. Needs no network, no service, no root."""
    return _("""\
# You cannot get online

While psiphon-vpn is installed, a computer that is offline is protected. Nothing on this page needs the network. Begin
at the top. Steps 4 to 6 open the network; the others do not.

## 1. What is wrong?

    sudo psiphon-vpn status
    sudo psiphon-vpn diagnose
    sudo psiphon-vpn log

`status` says in one line what is missing and what to do. `diagnose` checks everything, and has a next step for each
failed check. The log says what happened, and why.

## 2. What you see, and what to do

- **It is not set up** (NOT SET UP): `sudo psiphon-vpn setup`; without a package, step 3. Until then nothing is locked,
  unless `status` says so.
- **There is no tunnel program or no list of servers**, or they are damaged: ask somebody who has this service to run
  `psiphon-vpn bundle FILE`. Bring that file here, for example on a USB stick, and run, without any network:

      sudo psiphon-vpn setup --bundle FILE

  If this version does not know that tunnel program, give the SHA-256 that it must have as well: `--sha256 HEX`. A
  program alone: `sudo psiphon-vpn update --core-file FILE --sha256 HEX`.

- **The configuration is not usable**: correct the named line with `sudo psiphon-vpn config edit`.
- **It tries to connect and does not succeed**: your network may block the servers that this computer knows. Give it
  some minutes. Then try any country (`sudo psiphon-vpn region best`), another network, or a newer file from somebody
  else, as above. Check the clock: `date` must not be days off.
- **The service does not run**: `sudo psiphon-vpn start`. Why it ended: `sudo psiphon-vpn log`.
- **You stopped it**: `sudo psiphon-vpn start`. Stopping does not open.
- **The network wants you to sign in on a web page** (hotels, trains): that page cannot be reached while the computer
  is locked. Sign in with another device, or see step 4.
- **No network card is up after a start**: the lock could not be loaded, and interfaces stay down until it is.
  `sudo journalctl -b -u psiphon-killswitch` says why. After removing the cause:
  `sudo systemctl start psiphon-killswitch`, then restart the network manager or the computer. If its rules are damaged
  (after a power cut, for example): step 3, then restart the computer.

## 3. The installation itself is broken

Install it again, from the same checkout or package. That never opens the network:

    sudo ./Psiphon-Linux-VPN-Service-Setup.sh install
    sudo apt install --reinstall ./psiphon-vpn_VERSION_all.deb

**The record is damaged** (/var/lib/psiphon-vpn/journal.json cannot be read): move it away and install again, from the
same version. The new record lists the files to remove. It does not know what was there before the first installation,
and considers the user psiphon-user, the kernel settings and the directories /etc/psiphon-vpn, /usr/lib/psiphon-vpn
and /var/lib/psiphon-vpn to be yours: they stay after step 5, and lock nothing.

## 4. Open the network for a while

    sudo psiphon-vpn release

asks for a word and then opens the network, without the tunnel, until `sudo psiphon-vpn start` or the next boot.
`status` shows it in red meanwhile. Whoever watches your connection sees what you do.

## 5. Remove it

    sudo psiphon-vpn uninstall
    sudo apt remove psiphon-vpn        # or: sudo dnf remove psiphon-vpn

Use the first if you installed from a checkout, the second for a package. Every change is undone; the network opens
last. The second keeps your configuration; `sudo apt purge psiphon-vpn` deletes it.

If a removal was interrupted, for example by a power cut, the computer may still be locked: run the same command
again. If there is no command `psiphon-vpn`, do step 3 first.

## 6. When not even that works

Start the computer with `systemd.mask=psiphon-killswitch.service systemd.mask=psiphon-guard.service
systemd.mask=psiphon-vpn.service systemd.unit=rescue.target` added to the kernel's command line (in GRUB: `e`, the line
that begins with `linux`, then Ctrl-X). Then psiphon-vpn loads nothing, and interfaces that need the lock stay down.
Do step 5, and restart.

If you remove the rules by hand (`nft flush ruleset`), remove the filters too, or nothing leaves the network cards:
`sudo tc filter del dev INTERFACE egress pref 1`, for each of them. A reboot does the same.
""")
