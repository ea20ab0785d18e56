# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel core's reports as typed events. None contains an address, a secret or free text."""

import dataclasses
import enum
from datetime import datetime
from typing import Literal, TypeAlias


@dataclasses.dataclass(frozen=True)
class Tunnels:
    """Number of tunnels. At least one means connected, but not yet that packets flow."""

    count: int


@dataclasses.dataclass(frozen=True)
class ActiveTunnel:
    """The protocol in use; empty if this program does not know it."""

    protocol: str


@dataclasses.dataclass(frozen=True)
class ConnectedServerRegion:
    """Country of the exit, two capital letters; empty if the core did not say."""

    region: str


@dataclasses.dataclass(frozen=True)
class AvailableEgressRegions:
    """Countries that have usable servers now, sorted; empty with a new data store."""

    regions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ListeningSocksProxyPort:
    """The SOCKS proxy listens on this TCP port."""

    port: int


@dataclasses.dataclass(frozen=True)
class PortInUse:
    """A proxy's port is taken: the core ends, with exit code 0 and without Exiting."""

    port: int
    which: Literal["socks", "http"]


@dataclasses.dataclass(frozen=True)
class UpstreamProxyError:
    """The upstream proxy does not work."""


@dataclasses.dataclass(frozen=True)
class EstablishTunnelTimeout:
    """The core gives up and ends, with exit code 0."""


@dataclasses.dataclass(frozen=True)
class Exiting:
    """The last notice of an orderly end."""


class ListTrouble(enum.StrEnum):
    """Why the core got no list of servers from the list's host."""

    LOOKUP = "lookup"
    """The name of the host was not resolved."""
    UNREACHABLE = "unreachable"
    CERTIFICATE = "certificate"
    """The host that answered did not prove that it is the right one."""
    REFUSED = "refused"
    """The host answered that it does not give the list."""
    WRONG_KEY = "wrong_key"
    BAD_SIGNATURE = "bad_signature"
    NOT_A_LIST = "not_a_list"
    STORAGE = "storage"
    """The list is good, and could not be stored."""


@dataclasses.dataclass(frozen=True)
class CandidateServers:
    """Number of candidate servers. 0: region or protocols exclude all, or no server was known yet.

    It comes once in an establishment: a list that arrives later changes the number without another notice.
    """

    count: int


@dataclasses.dataclass(frozen=True)
class KnownServers:
    """Number of servers in the core's store, whatever region and protocols exclude. Repeated in each round."""

    count: int


@dataclasses.dataclass(frozen=True)
class ConnectingServer:
    """The core dials a server.

    Attributes:
        server: a number that tells servers apart within this process, and means nothing outside of it.
        region: its country, two capital letters; empty if unknown.
        protocol: as `ActiveTunnel` has it.
    """

    server: int
    region: str
    protocol: str


@dataclasses.dataclass(frozen=True)
class ConnectedServer:
    """A server answered as a Psiphon server does; the tunnel is not ready yet."""

    region: str
    protocol: str


@dataclasses.dataclass(frozen=True)
class ListFailed:
    """The core got no list of servers from its host."""

    trouble: ListTrouble


@dataclasses.dataclass(frozen=True)
class PacketTunnelEstablished:
    """The channel for packets is open."""


@dataclasses.dataclass(frozen=True)
class PacketTunnelFailed:
    """The channel for packets could not be opened; the core does not try again within this tunnel."""


@dataclasses.dataclass(frozen=True)
class ConfigRejected:
    """The core refuses its configuration and ends with exit code 1."""


@dataclasses.dataclass(frozen=True)
class TunDeviceFailed:
    """The core cannot open the TUN device and ends with exit code 1."""


@dataclasses.dataclass(frozen=True)
class DatastoreError:
    """The core cannot open its data store and ends: with exit code 1, or 2 if the store made it crash.

    Attributes:
        why: another process holds it, the file system cannot be written, or the store cannot be read.
    """

    why: Literal["held", "disk", "broken"]


@dataclasses.dataclass(frozen=True)
class DatastoreReset:
    """The core discarded its data store because it could not open it, and tries to start with an empty one."""


@dataclasses.dataclass(frozen=True)
class DatastoreFailed:
    """The data store became unusable while it was open; the core continues without it until its next start."""


@dataclasses.dataclass(frozen=True)
class TargetUnfit:
    """The only server that the core may use (TargetServerEntry) conflicts with another setting.

    With region or protocols the core ends with exit code 0; with an upstream proxy it never contacts the server.
    """

    what: Literal["region", "protocols", "proxy"]


@dataclasses.dataclass(frozen=True)
class BytesTransferred:
    """Bytes since the last notice of this kind, IP headers included."""

    sent: int
    received: int


@dataclasses.dataclass(frozen=True)
class TrafficRateLimits:
    """The server's limits in bytes per second; 0 means none."""

    upstream: int
    downstream: int


@dataclasses.dataclass(frozen=True)
class ServerTimestamp:
    """The time of the server's clock, UTC."""

    timestamp: datetime


@dataclasses.dataclass(frozen=True)
class ServerAlert:
    """The server objects to traffic; the subject is free text and is left out."""

    reason: Literal["disallowed-traffic", "unsafe-traffic", "other"]


@dataclasses.dataclass(frozen=True)
class BuildInfo:
    """First digits of the core's source revision, hexadecimal; empty if unknown."""

    revision: str


@dataclasses.dataclass(frozen=True)
class Other:
    """A notice without effect; `kind` is a known notice type, or "unknown"."""

    kind: str


CoreEvent: TypeAlias = (
    Tunnels
    | ActiveTunnel
    | ConnectedServerRegion
    | AvailableEgressRegions
    | ListeningSocksProxyPort
    | PortInUse
    | UpstreamProxyError
    | EstablishTunnelTimeout
    | Exiting
    | CandidateServers
    | KnownServers
    | ConnectingServer
    | ConnectedServer
    | ListFailed
    | PacketTunnelEstablished
    | PacketTunnelFailed
    | ConfigRejected
    | TunDeviceFailed
    | DatastoreError
    | DatastoreReset
    | DatastoreFailed
    | TargetUnfit
    | BytesTransferred
    | TrafficRateLimits
    | ServerTimestamp
    | ServerAlert
    | BuildInfo
    | Other
)
