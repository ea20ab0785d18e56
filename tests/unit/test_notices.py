# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel core's notices."""

import ipaddress
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.core import events as ev
from psiphon_vpn.core.notices import KNOWN_KINDS, MAX_LINE, parse_notice


def notice(kind: str, **data: object) -> bytes:
    return json.dumps({"data": data, "noticeType": kind, "timestamp": "2026-01-02T03:04:05.678Z"}).encode() + b"\n"


# As a real core writes it.
OPENING = "main.(*TunnelWorker).Init#355: psiphon.openDataStore#169: psiphon.tryDatastoreOpenDB#167"
FETCHING = (
    "failed to fetch common remote server list: psiphon.(*Controller).remoteServerListFetcher#901: failed to download "
    "common remote server list: psiphon.downloadRemoteServerListFile#517: psiphon.ResumeDownload#896"
)
READING = FETCHING.replace("failed to download common", "failed to read")
RESET = "ServerEntryIterator.reset: entries {}, moved-to-front 0; durations: entries 519ns, total 4µs"
RESOLVING = 'Get "[redacted]": psiphon.UntunneledResolveIP#478: resolver.(*Resolver).ResolveIP#667: [redacted]'
VERIFYING = 'Get "[redacted]": tlsdialer.Dial#412: x509: certificate signed by unknown authority'
ITERATING = "failed to iterate over candidates: psiphon.(*Controller).establishCandidateGenerator#2932"
DISK = ev.DatastoreError("disk")
UNFIT_REGION = ev.TargetUnfit("region")


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (notice("Tunnels", count=1), ev.Tunnels(1)),
        (notice("Tunnels", count=0), ev.Tunnels(0)),
        (notice("ActiveTunnel", diagnosticID="Xy", protocol="QUIC-OSSH"), ev.ActiveTunnel("QUIC-OSSH")),
        (notice("ActiveTunnel", protocol="SOMETHING-NEW"), ev.ActiveTunnel("")),
        (notice("ConnectedServerRegion", serverRegion="CA"), ev.ConnectedServerRegion("CA")),
        (notice("ConnectedServerRegion", serverRegion="Canada"), ev.ConnectedServerRegion("")),
        (notice("AvailableEgressRegions", regions=["US", "CA", "x", 5]), ev.AvailableEgressRegions(("CA", "US"))),
        (notice("AvailableEgressRegions", regions=[]), ev.AvailableEgressRegions(())),
        (notice("ListeningSocksProxyPort", port=1081), ev.ListeningSocksProxyPort(1081)),
        (notice("SocksProxyPortInUse", port=1081), ev.PortInUse(1081, "socks")),
        (notice("HttpProxyPortInUse", port=8081), ev.PortInUse(8081, "http")),
        (notice("UpstreamProxyError", message="dial 192.0.2.1"), ev.UpstreamProxyError()),
        (notice("EstablishTunnelTimeout", timeout="5m0s"), ev.EstablishTunnelTimeout()),
        (notice("Exiting"), ev.Exiting()),
        (notice("CandidateServers", region="CA", count=0), ev.CandidateServers(0)),
        (notice("Info", message="DialPacketTunnelChannel: established channel"), ev.PacketTunnelEstablished()),
        (notice("Warning", message="dial packet tunnel channel failed: EOF"), ev.PacketTunnelFailed()),
        (notice("Info", message=RESET.format(3)), ev.KnownServers(3)),
        (notice("Info", message=RESET.format("x")), ev.Other("Info")),
        (notice("Warning", message=RESET.format(3)), ev.Other("Warning")),
        (notice("ConnectedServer", region="DE", protocol="OSSH"), ev.ConnectedServer("DE", "OSSH")),
        (notice("ConnectedServer", region="de", protocol="new"), ev.ConnectedServer("", "")),
        (notice("Warning", message=f"{FETCHING}: {RESOLVING}"), ev.ListFailed(ev.ListTrouble.LOOKUP)),
        (
            notice("Warning", message=f"{FETCHING}: dial tcp [redacted]: connect: connection refused"),
            ev.ListFailed(ev.ListTrouble.UNREACHABLE),
        ),
        (notice("Warning", message=f"{FETCHING}: {VERIFYING}"), ev.ListFailed(ev.ListTrouble.CERTIFICATE)),
        (
            notice("Warning", message=f"{FETCHING}: unexpected response status code: 403"),
            ev.ListFailed(ev.ListTrouble.REFUSED),
        ),
        (
            notice("Warning", message=f"{READING}: unexpected signing public key digest"),
            ev.ListFailed(ev.ListTrouble.WRONG_KEY),
        ),
        (
            notice("Warning", message=f"{READING}: crypto/rsa: verification error"),
            ev.ListFailed(ev.ListTrouble.BAD_SIGNATURE),
        ),
        (notice("Warning", message=f"{READING}: zlib: invalid header"), ev.ListFailed(ev.ListTrouble.NOT_A_LIST)),
        (notice("Error", message=f"error in init: {OPENING}: timeout"), ev.DatastoreError("held")),
        (notice("Error", message=f"error in init: {OPENING}: open /x/y: is a directory"), ev.DatastoreError("broken")),
        (notice("Error", message=f"error in init: {OPENING}: write /x: no space left on device"), DISK),
        (notice("Error", message=f"error in init: {OPENING}: open /x: read-only file system"), DISK),
        (notice("Warning", message="tryDatastoreOpenDB: reset"), ev.DatastoreReset()),
        (notice("Warning", message="datastore has failed: x#236: panic: invalid meta pages"), ev.DatastoreFailed()),
        (
            b"example.com/core/psiphon.tryDatastoreOpenDB({0x3, 0x5}, 0x0)\n",
            ev.DatastoreError("broken"),
        ),
        (notice("Error", message=f"{ITERATING}: TargetServerEntry does not support EgressRegion"), UNFIT_REGION),
        (
            notice("Error", message=f"{ITERATING}: TargetServerEntry does not support LimitTunnelProtocols: [X]"),
            ev.TargetUnfit("protocols"),
        ),
        (notice("Error", message=f"{ITERATING}: something else"), ev.Other("Error")),
        (
            notice("SkipServerEntry", reason="server entry source disallowed with upstream proxy: TARGET"),
            ev.TargetUnfit("proxy"),
        ),
        (notice("SkipServerEntry", reason="protocol disallowed"), ev.Other("SkipServerEntry")),
        (notice("Error", message="error loading configuration file: x"), ev.ConfigRejected()),
        (notice("Error", message="error processing configuration file: x"), ev.ConfigRejected()),
        (notice("Error", message="error configuring packet tunnel: x"), ev.TunDeviceFailed()),
        (notice("BytesTransferred", diagnosticID="x", sent=5, received=7), ev.BytesTransferred(5, 7)),
        (
            notice("TrafficRateLimits", upstreamBytesPerSecond=0, downstreamBytesPerSecond=9),
            ev.TrafficRateLimits(0, 9),
        ),
        (
            notice("ServerTimestamp", timestamp="2026-01-02T03:04:05+01:00"),
            ev.ServerTimestamp(datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)),
        ),
        (notice("ServerAlert", reason="unsafe-traffic", subject="x", actionURLs=[]), ev.ServerAlert("unsafe-traffic")),
        (notice("ServerAlert", reason="new", subject="x"), ev.ServerAlert("other")),
        (notice("BuildInfo", buildInfo={"buildRev": "a70e0b58"}), ev.BuildInfo("a70e0b58")),
        (notice("BuildInfo", buildInfo=None), ev.BuildInfo("")),
        (notice("Homepage", url="https://example.com/?secret=hunter2"), ev.Other("Homepage")),
        (notice("SomethingNew", x=1), ev.Other("unknown")),
    ],
)
def test_a_notice_becomes_its_event(line: bytes, event: ev.CoreEvent) -> None:
    assert parse_notice(line) == event


def test_a_server_that_is_dialled_is_distinguished_from_others_by_a_number_alone() -> None:
    events = [
        parse_notice(notice("ConnectingServer", diagnosticID=name, region="DE", protocol="OSSH"))
        for name in ("zjaxVRLi", "zjaxVRLi", "AbCdEfGh")
    ]
    assert events[0] == events[1] != events[2]
    assert all(isinstance(event, ev.ConnectingServer) and event.region == "DE" for event in events)
    assert "zjaxVRLi" not in repr(events)


@pytest.mark.parametrize(
    "line",
    [
        notice("Tunnels", count="1"),
        notice("Tunnels", count=True),
        notice("Tunnels", count=1.0),
        notice("Tunnels", count=-1),
        notice("Tunnels", count=10**30),
        notice("Tunnels"),
        b'{"noticeType":"Tunnels","data":[1]}',
        b'{"noticeType":"Tunnels"}',
        notice("Info", message="he said: DialPacketTunnelChannel: established channel"),
        notice("Warning", message="DialPacketTunnelChannel: established channel"),
        notice("Error", message="DialPacketTunnelChannel: established channel"),
        notice("UserLog", message="DialPacketTunnelChannel: established channel"),
        notice("Info", message=["DialPacketTunnelChannel: established channel"]),
        notice("SocksProxyPortInUse", port=70000),
        notice("ServerTimestamp", timestamp="2026-01-02T03:04:05"),
        notice("ServerTimestamp", timestamp="0001-01-01T00:00:00+14:00"),
        notice("ServerTimestamp", timestamp=5),
        notice("AvailableEgressRegions", regions="CA"),
    ],
)
def test_nothing_is_concluded_from_a_notice_with_wrong_fields(line: bytes) -> None:
    assert isinstance(parse_notice(line), ev.Other)


@pytest.mark.defect(16)
@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"panic: runtime error: invalid memory address or nil pointer dereference\n",
        b"goroutine 1 [running]:\n",
        b'{"data":{"message":"a "quoted" word"},"noticeType":"InternalError"}\n',
        b'{"noticeType":"Tunnels","data":{"count":1}',
        b'["Tunnels"]',
        b"5",
        b"null",
        b'{"noticeType":5}',
        b'{"noticeType":"Tunnels\xff","data":{"count":1}}',
        b"[" * 60000,
        b'{"noticeType":"Tunnels","data":{"count":' + b"9" * 5000 + b"}}",
        b" " * MAX_LINE + notice("Tunnels", count=1),
        '{"noticeType":"Tunnels","data":{"count":1}}'.encode("utf-16"),
    ],
)
def test_a_line_that_is_no_notice_is_none(line: bytes) -> None:
    assert parse_notice(line) is None


FIELDS = [
    "count", "protocol", "serverRegion", "regions", "port", "message", "sent", "received", "upstreamBytesPerSecond",
    "downstreamBytesPerSecond", "timestamp", "reason", "subject", "buildInfo", "buildRev", "url", "address", "ID",
    "diagnosticID", "region",
]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(line: bytes) -> None:
    assert not isinstance(parse_notice(line), ev.Tunnels)


@given(st.sampled_from(sorted(KNOWN_KINDS)), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))
def test_any_fields_of_any_known_notice_are_survived(kind: str, data: dict[str, object]) -> None:
    assert parse_notice(notice(kind, **data)) is not None


secrets = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: ipaddress.IPv6Address(address).exploded),
    st.from_regex(r"[A-Za-z0-9]{12,24}", fullmatch=True).filter(lambda word: not word.isdigit()),
    st.from_regex(r"[0-9a-f]{32,40}", fullmatch=True).filter(lambda word: not word.isdigit()),
    st.just("example.com"),
).filter(lambda secret: len(secret) > 6)
PREFIXES = [
    "",
    "failed to fetch common remote server list: ",
    RESET.format(5),
    "dial packet tunnel channel failed: ",
    "error in init: datastore ",
    "2026-01-02T03:04:05Z ",
]


@pytest.mark.defect(17)
@given(st.sampled_from([*KNOWN_KINDS, ""]), st.sampled_from(FIELDS), st.sampled_from(PREFIXES), secrets)
def test_no_address_or_secret_in_any_field_reaches_an_event(kind: str, field: str, prefix: str, secret: str) -> None:
    text = prefix + secret
    for value in (text, [text], {"buildRev": text, field: text}):
        assert secret not in repr(parse_notice(notice(kind or secret, **{field: value, secret: value})))


@given(st.ip_addresses(v=4), st.sampled_from(sorted(KNOWN_KINDS)), st.sampled_from(FIELDS))
def test_a_numeric_field_takes_no_address_in_dotted_form(address: ipaddress.IPv4Address, kind: str, field: str) -> None:
    # Positive control: a number comes through, so the parser is not simply silent.
    assert "7" in repr(parse_notice(notice("CandidateServers", count=7)))
    assert str(address) not in repr(parse_notice(notice(kind, **{field: str(address)})))
