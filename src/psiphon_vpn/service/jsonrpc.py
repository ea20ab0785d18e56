# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON-RPC 2.0 (https://www.jsonrpc.org/specification), one object a line, without batches."""

import dataclasses
import json
from typing import Final, NoReturn, TypeAlias

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
FAILED: Final = -32000
"""This service's own code: the request failed; data holds what, why and next_step."""
PERMISSION_DENIED: Final = -32001
"""This service's own code: the peer may not request this."""

MAX_LINE: Final = 64 * 1024
"""Bytes of a request, line feed included."""

Id: TypeAlias = str | int | None


class RpcError(Exception):
    """A request that cannot be fulfilled.

    Args:
        code: one of the codes above.
        message: short English text for programs; `data` has the text for users.
        data: details, as JSON.
        request_id: of the request, None if unknown.
    """

    def __init__(self, code: int, message: str, *, data: object = None, request_id: Id = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.request_id = request_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request. A notification gets no answer."""

    method: str
    request_id: Id
    is_notification: bool


def parse_request(line: bytes) -> Request:
    """Parse one line.

    Raises:
        RpcError: it is not a request; the only exception, whatever the bytes.
    """
    try:
        message = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as cause:
        raise RpcError(PARSE_ERROR, "not JSON") from cause
    if not isinstance(message, dict):
        raise RpcError(INVALID_REQUEST, "not a single request object")
    request_id = message.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | None):
        raise RpcError(INVALID_REQUEST, "the id must be a string or a whole number")
    method = message.get("method")
    if message.get("jsonrpc") != "2.0" or not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, "not a JSON-RPC 2.0 request", request_id=request_id)
    if message.get("params", {}) not in ({}, []):
        raise RpcError(INVALID_PARAMS, "no method takes parameters", request_id=request_id)
    return Request(method=method, request_id=request_id, is_notification="id" not in message)


def _refuse_constant(name: str) -> NoReturn:
    # Python accepts NaN and Infinity; JSON (RFC 8259) has neither.
    raise ValueError(name)


def render_result(request_id: Id, result: object) -> bytes:
    """Return the line that answers a request."""
    return _render({"jsonrpc": "2.0", "id": request_id, "result": result})


def render_error(error: RpcError) -> bytes:
    """Return the line that refuses a request."""
    body: dict[str, object] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return _render({"jsonrpc": "2.0", "id": error.request_id, "error": body})


def render_notification(method: str, params: object) -> bytes:
    """Return the line of a notification, which answers no request."""
    return _render({"jsonrpc": "2.0", "method": method, "params": params})


def _render(message: object) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
