# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel core's notice stream, parsed into typed events.

The core writes one JSON object a line to its standard error: {"noticeType": .., "data": {..}, "timestamp": ..}. Panics
of its runtime and output of its libraries appear there too, and one notice type is not always valid JSON, so any line
may be junk. Notices contain secrets (home page URLs), addresses and places. An event keeps only numbers, two-letter
regions and words from the lists here, so that none of that can reach a log.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from psiphon_vpn.core.events import (
    ActiveTunnel,
    AvailableEgressRegions,
    BuildInfo,
    BytesTransferred,
    CandidateServers,
    ConfigRejected,
    ConnectedServer,
    ConnectedServerRegion,
    ConnectingServer,
    CoreEvent,
    DatastoreError,
    DatastoreFailed,
    DatastoreReset,
    EstablishTunnelTimeout,
    Exiting,
    KnownServers,
    ListeningSocksProxyPort,
    ListFailed,
    ListTrouble,
    Other,
    PacketTunnelEstablished,
    PacketTunnelFailed,
    PortInUse,
    ServerAlert,
    ServerTimestamp,
    TargetUnfit,
    TrafficRateLimits,
    TunDeviceFailed,
    Tunnels,
    UpstreamProxyError,
)
from psiphon_vpn.core.options import TUNNEL_PROTOCOLS

MAX_LINE: Final = 64 * 1024
"""Bytes. Longer lines are junk: the longest useful notices have a few KiB."""

_MAX_COUNT: Final = 2**63 - 1
_REGION: Final = re.compile(r"[A-Z]{2}")
_REVISION: Final = re.compile(r"[0-9a-f]{7,40}")
_SHOWN_REVISION: Final = 10
_SERVER_NUMBERS: Final = 1 << 32
_ALERT_REASONS: Final = ("disallowed-traffic", "unsafe-traffic")
_STORE_CRASH: Final = re.compile(rb"(?:\S+/)?psiphon\.tryDatastoreOpenDB\(")
"""A stack trace line of a core that crashed while it opened the data store. With a corrupt list of free pages it
requests more memory than there is, which a Go program does not survive (bolt's freelist.read)."""
_KNOWN: Final = re.compile(r"ServerEntryIterator\.reset: entries (\d{1,9}),")
_LIST_FAILED: Final = re.compile(r"failed to fetch \w{1,20} remote server list:")
_LIST_TROUBLES: Final = (
    # The first that is found. Texts of the core, and of Go's packages net, net/http, crypto/x509 and crypto/rsa.
    ("unexpected signing public key digest", ListTrouble.WRONG_KEY),
    ("crypto/rsa: verification error", ListTrouble.BAD_SIGNATURE),
    ("failed to store", ListTrouble.STORAGE),
    ("failed to open", ListTrouble.STORAGE),
    ("failed to read", ListTrouble.NOT_A_LIST),
    ("ResolveIP", ListTrouble.LOOKUP),
    ("no such host", ListTrouble.LOOKUP),
    ("x509:", ListTrouble.CERTIFICATE),
    ("certificate", ListTrouble.CERTIFICATE),
    ("unexpected response status code", ListTrouble.REFUSED),
)
_DISK_ERRORS: Final = ("no space left on device", "read-only file system", "disk quota exceeded")
_OTHER_KINDS: Final = frozenset(
    """
    ActiveAuthorizationIDs ApplicationParameters BindToDevice Bursts ClientAddress ClientIsLatestVersion ClientRegion
    ClientUpgradeAvailable ClientUpgradeDownloaded ClientUpgradeDownloadedBytes Error Fragmentor Goroutine
    HoldOffTunnel Homepage Info InproxyMustUpgrade InproxyProxyActivity InproxyProxyTotalActivity InternalError
    LightProxyAvailable ListeningHttpProxyPort ListeningHttpProxyUnixPath ListeningSocksProxyUnixPath LivenessTest
    LocalProxyError NetworkID PruneServerEntry RemoteServerListResourceDownloaded
    RemoteServerListResourceDownloadedBytes RequestedTactics RequestingTactics SLOKSeeded SessionId SplitTunnelRegions
    TotalBytesTransferred Untunneled UserLog Warning packet_metrics
    """.split()
)


_Data: TypeAlias = Mapping[str, object]


class _Malformed(ValueError):
    """A field is missing or of the wrong type."""


def parse_notice(line: bytes) -> CoreEvent | None:
    """Parse one line of the core's standard error.

    Args:
        line: with or without its line feed.

    Returns:
        The event; None for a line that is not a notice. A notice of a known type with wrong fields becomes `Other`,
        which has no effect. Never raises.
    """
    if len(line) > MAX_LINE:
        return None
    if _STORE_CRASH.match(line):
        return DatastoreError("broken")
    try:
        notice = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(notice, dict):
        return None
    kind = notice.get("noticeType")
    if not isinstance(kind, str):
        return None
    data = notice.get("data")
    parser = _PARSERS.get(kind)
    if parser is None:
        return Other(kind if kind in _OTHER_KINDS else "unknown")
    try:
        return parser(data if isinstance(data, dict) else {})
    except _Malformed:
        return Other(kind)


def _take_int(data: _Data, name: str, *, high: int = _MAX_COUNT) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
        raise _Malformed
    return value


def _take_port(data: _Data) -> int:
    return _take_int(data, "port", high=65535)


def _take_region(value: object) -> str:
    return value if isinstance(value, str) and _REGION.fullmatch(value) else ""


def _take_protocol(data: _Data) -> str:
    protocol = data.get("protocol")
    return protocol if isinstance(protocol, str) and protocol in TUNNEL_PROTOCOLS else ""


def _parse_connecting(data: _Data) -> CoreEvent:
    name = data.get("diagnosticID")
    # Python's hash of a text is salted anew in each process: the number tells no server's name.
    region = _take_region(data.get("region"))
    server = hash((name, region)) % _SERVER_NUMBERS if isinstance(name, str) else 0
    return ConnectingServer(server, region, _take_protocol(data))


def _parse_regions(data: _Data) -> CoreEvent:
    regions = data.get("regions")
    if not isinstance(regions, list):
        raise _Malformed
    return AvailableEgressRegions(tuple(sorted({region for entry in regions if (region := _take_region(entry))})))


def _parse_timestamp(data: _Data) -> CoreEvent:
    text = data.get("timestamp")
    if not isinstance(text, str):
        raise _Malformed
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise _Malformed
        return ServerTimestamp(moment.astimezone(UTC))
    except (ValueError, OverflowError) as cause:
        raise _Malformed from cause


def _parse_alert(data: _Data) -> CoreEvent:
    for reason in _ALERT_REASONS:
        if data.get("reason") == reason:
            return ServerAlert(reason)
    return ServerAlert("other")


def _parse_build_info(data: _Data) -> CoreEvent:
    info = data.get("buildInfo")
    revision = info.get("buildRev") if isinstance(info, dict) else None
    known = isinstance(revision, str) and _REVISION.fullmatch(revision)
    return BuildInfo(known[0][:_SHOWN_REVISION] if known else "")


def _take_message(data: _Data) -> str:
    message = data.get("message")
    return message if isinstance(message, str) else ""


def _parse_info(data: _Data) -> CoreEvent:
    message = _take_message(data)
    if message == "DialPacketTunnelChannel: established channel":
        return PacketTunnelEstablished()
    if (known := _KNOWN.match(message)) is not None:
        return KnownServers(int(known[1]))
    return Other("Info")


def _parse_warning(data: _Data) -> CoreEvent:
    message = _take_message(data)
    if message.startswith("dial packet tunnel channel failed:"):
        return PacketTunnelFailed()
    if message == "tryDatastoreOpenDB: reset":
        return DatastoreReset()
    if message.startswith("datastore has failed:"):
        return DatastoreFailed()
    if _LIST_FAILED.match(message):
        return ListFailed(_find_list_trouble(message))
    return Other("Warning")


def _parse_error(data: _Data) -> CoreEvent:
    message = _take_message(data)
    if message.startswith(("error loading configuration file:", "error processing configuration file:")):
        return ConfigRejected()
    if message.startswith("error configuring packet tunnel:"):
        return TunDeviceFailed()
    if message.startswith("error in init:") and "datastore" in message.casefold():
        return DatastoreError(_find_store_trouble(message))
    if message.startswith("failed to iterate over candidates:"):
        if message.endswith("TargetServerEntry does not support EgressRegion"):
            return TargetUnfit("region")
        if "TargetServerEntry does not support LimitTunnelProtocols" in message:
            return TargetUnfit("protocols")
    return Other("Error")


def _parse_skip(data: _Data) -> CoreEvent:
    unfit = data.get("reason") == "server entry source disallowed with upstream proxy: TARGET"
    return TargetUnfit("proxy") if unfit else Other("SkipServerEntry")


def _find_list_trouble(message: str) -> ListTrouble:
    found = (trouble for text, trouble in _LIST_TROUBLES if text in message)
    return next(found, ListTrouble.UNREACHABLE)


def _find_store_trouble(message: str) -> Literal["held", "disk", "broken"]:
    # Only waiting for the file's lock can time out.
    if message.endswith(": timeout"):
        return "held"
    return "disk" if message.endswith(_DISK_ERRORS) else "broken"


_PARSERS: Final[Mapping[str, Callable[[_Data], CoreEvent]]] = {
    # The core cannot have more than 32 tunnels.
    "Tunnels": lambda data: Tunnels(_take_int(data, "count", high=32)),
    "ActiveTunnel": lambda data: ActiveTunnel(_take_protocol(data)),
    "ConnectingServer": _parse_connecting,
    "ConnectedServer": lambda data: ConnectedServer(_take_region(data.get("region")), _take_protocol(data)),
    "ConnectedServerRegion": lambda data: ConnectedServerRegion(_take_region(data.get("serverRegion"))),
    "AvailableEgressRegions": _parse_regions,
    "ListeningSocksProxyPort": lambda data: ListeningSocksProxyPort(_take_port(data)),
    "SocksProxyPortInUse": lambda data: PortInUse(_take_port(data), "socks"),
    "HttpProxyPortInUse": lambda data: PortInUse(_take_port(data), "http"),
    "UpstreamProxyError": lambda _data: UpstreamProxyError(),
    "EstablishTunnelTimeout": lambda _data: EstablishTunnelTimeout(),
    "Exiting": lambda _data: Exiting(),
    "SkipServerEntry": _parse_skip,
    "CandidateServers": lambda data: CandidateServers(_take_int(data, "count")),
    "Info": _parse_info,
    "Warning": _parse_warning,
    "Error": _parse_error,
    "BytesTransferred": lambda data: BytesTransferred(_take_int(data, "sent"), _take_int(data, "received")),
    "TrafficRateLimits": lambda data: TrafficRateLimits(
        _take_int(data, "upstreamBytesPerSecond"), _take_int(data, "downstreamBytesPerSecond")
    ),
    "ServerTimestamp": _parse_timestamp,
    "ServerAlert": _parse_alert,
    "BuildInfo": _parse_build_info,
}
KNOWN_KINDS: Final = frozenset({*_PARSERS, *_OTHER_KINDS})
"""The kinds of notices that are told apart; every other one is "unknown"."""
