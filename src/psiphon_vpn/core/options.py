# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel core's own options that `[core.advanced]` passes on, and those that it refuses, with the reason.

The core ignores unknown keys silently and compares names without regard to case, so only the exact names here pass.
"""

from collections.abc import Callable, Mapping
from typing import Final

from psiphon_vpn.checks import (
    Check,
    Refused,
    check_base64,
    check_base64_url,
    check_bool,
    check_headers,
    check_int,
    check_list,
    check_number,
    check_pattern,
    check_table,
    check_text,
    suggest,
)
from psiphon_vpn.i18n import _

_BASE_PROTOCOLS: Final = (
    "SSH",
    "OSSH",
    "TLS-OSSH",
    "SHADOWSOCKS-OSSH",
    "UNFRONTED-MEEK-OSSH",
    "UNFRONTED-MEEK-HTTPS-OSSH",
    "UNFRONTED-MEEK-SESSION-TICKET-OSSH",
    "FRONTED-MEEK-OSSH",
    "FRONTED-MEEK-HTTP-OSSH",
    "QUIC-OSSH",
    "FRONTED-MEEK-QUIC-OSSH",
    "CONJURE-OSSH",
)
_PREFIX: Final = "INPROXY-WEBRTC-"
TUNNEL_PROTOCOLS: Final = (*_BASE_PROTOCOLS, *(_PREFIX + name for name in _BASE_PROTOCOLS))


def check_protocol(value: object) -> str:
    """Accept the name of a protocol that the core can dial."""
    name = check_text(value)
    if name not in TUNNEL_PROTOCOLS:
        text = _("it must name protocols of this list: {names}; each of them also with {prefix} in front")
        reason = text.format(names=", ".join(_BASE_PROTOCOLS), prefix=_PREFIX)
        raise Refused(suggest(reason, name, TUNNEL_PROTOCOLS))
    return name


check_region = check_pattern("[A-Z]{2}", lambda: _("it must be two capital letters, such as CA"))
_check_id = check_pattern("[0-9A-Fa-f]{16}", lambda: _("it must be 16 hexadecimal digits"))
_check_entry = check_pattern(
    "(?:[0-9A-Fa-f]{2}){16,32768}", lambda: _("it must be a server entry: a long row of hexadecimal digits")
)
_check_version = check_pattern("[0-9]{1,9}", lambda: _("it must be a whole number in quotes"))


def _check_list_urls(value: object) -> object:
    """Accept the addresses of a server list. The core requires one for the first attempt."""
    urls = check_list(
        check_table(
            {
                "URL": check_base64_url,
                "SkipVerify": check_bool,
                "OnlyAfterAttempts": check_int(0),
                "B64EncodedPublicKey": check_base64,
                "RequestHeaders": check_headers,
            },
            needed=("URL",),
        ),
        low=1,
    )(value)
    if all(url.get("OnlyAfterAttempts", 0) for url in urls):
        raise Refused(_("one entry must have OnlyAfterAttempts 0, or nothing is tried first"))
    return urls


ALLOWED: Final[Mapping[str, Check]] = {
    "TargetServerEntry": _check_entry,
    "DisableRemoteServerListFetcher": check_bool,
    "RemoteServerListURLs": _check_list_urls,
    "RemoteServerListSignaturePublicKey": check_base64,
    "ObfuscatedServerListRootURLs": _check_list_urls,
    "ServerEntrySignaturePublicKey": check_base64,
    "LimitTunnelProtocols": check_list(check_protocol, low=1),
    "InitialLimitTunnelProtocols": check_list(check_protocol, low=1),
    "InitialLimitTunnelProtocolsCandidateCount": check_int(1),
    "NetworkLatencyMultiplier": check_number(1.0, 100.0),
    "ConnectionWorkerPoolSize": check_int(1, 100),
    "EstablishTunnelPausePeriodSeconds": check_int(1, 3600),
    "PropagationChannelId": _check_id,
    "SponsorId": _check_id,
    "ClientVersion": _check_version,
    "CustomHeaders": check_headers,
    "RateLimits": check_table(
        {
            "ReadBytesPerSecond": check_int(0, 2**63 - 1),
            "WriteBytesPerSecond": check_int(0, 2**63 - 1),
            "ReadUnthrottledBytes": check_int(0, 2**63 - 1),
            "WriteUnthrottledBytes": check_int(0, 2**63 - 1),
            "CloseAfterExhausted": check_bool,
        }
    ),
    "SSHPacketTunnelChannelWindowSize": check_int(1, 128),
    "DisableTactics": check_bool,
    "DisableReplay": check_bool,
    "DisableDSLFetcher": check_bool,
    "DeviceRegion": check_region,
}


PROFILE_KEYS: Final = (
    "RemoteServerListURLs",
    "RemoteServerListSignaturePublicKey",
    "ObfuscatedServerListRootURLs",
    "ServerEntrySignaturePublicKey",
)
"""What says whose servers are used: a profile's, which is root's. In the configuration they only repeat it."""


def _use(key: str) -> Callable[[], str]:
    return lambda: _("set it with {key} at the top of the file").format(key=key)


def _instead(key: str) -> Callable[[], str]:
    return lambda: _("it is the old name; use {key}").format(key=key)


def _own() -> str:
    return _("the service sets it itself")


def _logs() -> str:
    return _("it would write addresses of people and servers into the log")


def _split() -> str:
    return _("it sends traffic outside the tunnel on purpose")


def _http() -> str:
    return _("the tunnel program's HTTP proxy fetches pages outside the tunnel for any program, so it stays off")


def _upgrade() -> str:
    return _("it downloads programs that nothing verifies")


def _feedback() -> str:
    return _("it sends reports to third parties, past the tunnel")


def _relay() -> str:
    return _("it would carry strangers' traffic past the tunnel")


def _obsolete() -> str:
    return _("the tunnel program no longer uses it")


REFUSED: Final[Mapping[str, Callable[[], str]]] = {
    "EgressRegion": _use("egress_region"),
    "UpstreamProxyURL": _use("upstream_proxy"),
    "UpstreamProxyUrl": _use("upstream_proxy"),
    "LocalSocksProxyPort": _use("socks_port"),
    "EstablishTunnelTimeoutSeconds": _use("establish_timeout"),
    "DisableLocalSocksProxy": _own,
    "UseUnixDomainSockets": _own,
    "LocalSocksProxyUnixPath": _own,
    "DataRootDirectory": _own,
    "NetworkID": _own,
    "ClientPlatform": _own,
    "EmitDiagnosticNotices": _own,
    "EmitBytesTransferred": _own,
    "EmitServerAlerts": _own,
    "PacketTunnelTunFileDescriptor": _own,
    "PacketTunnelTransparentDNSIPv4Address": _own,
    "PacketTunnelTransparentDNSIPv6Address": lambda: _("it works only with some servers and is silent with the others"),
    "SessionID": _own,
    "EmitDiagnosticNetworkParameters": _logs,
    "EmitClientAddress": _logs,
    "UseNoticeFiles": lambda: _("the service would no longer see what the tunnel program reports"),
    "SplitTunnelOwnRegion": _split,
    "SplitTunnelRegions": _split,
    "LocalHttpProxyPort": _http,
    "LocalHttpProxyUnixPath": _http,
    "DisableLocalHTTPProxy": _http,
    "ListenInterface": lambda: _("it would open the proxy to the network; it listens on this machine only"),
    "TunnelPoolSize": lambda: _("a packet tunnel works with exactly one tunnel"),
    "DisableTunnels": lambda: _("without tunnels there is nothing to let through"),
    "EnableUpgradeDownload": _upgrade,
    "UpgradeDownloadURLs": _upgrade,
    "UpgradeDownloadUrl": _upgrade,
    "EnableFeedbackUpload": _feedback,
    "FeedbackUploadURLs": _feedback,
    "InproxyMaxClients": _relay,
    "InproxyMaxCommonClients": _relay,
    "InproxyMaxPersonalClients": _relay,
    "RemoteServerListUrl": _instead("RemoteServerListURLs"),
    "ObfuscatedServerListRootURL": _instead("ObfuscatedServerListRootURLs"),
    "UpstreamProxyCustomHeaders": _instead("CustomHeaders"),
    "UseIndistinguishableTLS": _obsolete,
    "RemoteServerListDownloadFilename": _obsolete,
    "ObfuscatedServerListDownloadDirectory": _obsolete,
    "DataStoreDirectory": _obsolete,
}


def find_conflict(options: Mapping[str, object]) -> tuple[str, str] | None:
    """Return (option at fault, reason) if options contradict each other for the core, else None."""
    initial, count = "InitialLimitTunnelProtocols", "InitialLimitTunnelProtocolsCandidateCount"
    for one, other in ((initial, count), (count, initial)):
        if one in options and other not in options:
            return one, _("it works only together with {other}").format(other=other)
    return None
