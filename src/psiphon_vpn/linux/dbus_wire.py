"""D-Bus messages as bytes and back (D-Bus specification 0.43, "Message Protocol"). Pure.

Ours is a small part of the protocol: calls with simple arguments, answers, and signals. Everything that is read is
bounded, and whatever is wrong with it is a `WireError`.
"""

import struct
from dataclasses import dataclass, field
from typing import Any, Final

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
MAX_MESSAGE: Final = 1 << 20
"""Bytes; what we ask for is a hundred times smaller. The protocol allows 128 MiB."""
_MAX_DEPTH: Final = 32
_HEADER: Final = 16
_FIXED: Final = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I", "b": "I"}
_FIELD_PATH, _FIELD_INTERFACE, _FIELD_MEMBER, _FIELD_ERROR, _FIELD_REPLY = 1, 2, 3, 4, 5
_FIELD_DESTINATION, _FIELD_SENDER, _FIELD_SIGNATURE, _FIELD_FDS = 6, 7, 8, 9


class WireError(ValueError):
    """These bytes are no D-Bus message, or one that is not understood here."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message. Empty strings and zeros stand for header fields that it does not have."""

    kind: int
    serial: int = 0
    reply_to: int = 0
    destination: str = ""
    sender: str = ""
    path: str = ""
    interface: str = ""
    member: str = ""
    error: str = ""
    flags: int = 0
    fd_count: int = 0
    signature: str = ""
    arguments: tuple[Any, ...] = field(default=())


# -- writing -----------------------------------------------------------------------------------------------------------


def _pad(data: bytearray, alignment: int) -> None:
    data += bytes(-len(data) % alignment)


def _alignment(code: str) -> int:
    if code in "({":
        return 8
    if code in "soa":
        return 4
    return 1 if code in "gv" else struct.calcsize(_FIXED[code])


def _write(data: bytearray, kind: str, value: Any) -> None:
    code = kind[0]
    _pad(data, _alignment(code))
    if code in _FIXED:
        data += struct.pack(f"<{_FIXED[code]}", value)
    elif code in "so":
        text = value.encode()
        data += struct.pack("<I", len(text)) + text + b"\0"
    elif code == "g":
        data += bytes([len(value)]) + value.encode() + b"\0"
    elif code == "v":
        inner, held = value
        _write(data, "g", inner)
        _write(data, inner, held)
    elif code == "(":
        for one, part in zip(split_signature(kind[1:-1]), value, strict=True):
            _write(data, one, part)
    elif code == "a":
        _write_array(data, kind[1:], value)
    else:
        raise WireError(f"type {kind!r} is not written here")


def _write_array(data: bytearray, element: str, value: Any) -> None:
    at = len(data)
    data += bytes(4)
    _pad(data, _alignment(element[0]))
    begin = len(data)
    if element[0] == "{":
        key, held = split_signature(element[1:-1])
        for name, part in value.items():
            _pad(data, 8)
            _write(data, key, name)
            _write(data, held, part)
    else:
        for part in value:
            _write(data, element, part)
    struct.pack_into("<I", data, at, len(data) - begin)


def split_signature(signature: str) -> list[str]:
    """The complete types in a signature.

    Raises:
        WireError: it is not well formed.
    """
    found, at = [], 0
    while at < len(signature):
        end = _end_of_type(signature, at, 0)
        found.append(signature[at:end])
        at = end
    return found


def _end_of_type(signature: str, at: int, depth: int) -> int:
    if at >= len(signature) or depth > _MAX_DEPTH:
        raise WireError("a signature that ends too early, or goes too deep")
    code = signature[at]
    if code in _FIXED or code in "sogv":
        return at + 1
    if code == "a":
        return _end_of_type(signature, at + 1, depth + 1)
    if code in "({":
        begin = at = at + 1
        while at < len(signature) and signature[at] not in ")}":
            at = _end_of_type(signature, at, depth + 1)
        # Not empty: an array of what takes no bytes would never end.
        if begin < at < len(signature):
            return at + 1
    raise WireError(f"a signature with {code!r}")


def render_call(
    serial: int,
    *,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    arguments: tuple[Any, ...] = (),
) -> bytes:
    """A method call, in little endian."""
    body = bytearray()
    for kind, value in zip(split_signature(signature), arguments, strict=True):
        _write(body, kind, value)
    fields: list[tuple[int, tuple[str, str]]] = [
        (_FIELD_PATH, ("o", path)),
        (_FIELD_INTERFACE, ("s", interface)),
        (_FIELD_MEMBER, ("s", member)),
        (_FIELD_DESTINATION, ("s", destination)),
    ]
    if signature:
        fields.append((_FIELD_SIGNATURE, ("g", signature)))
    head = bytearray(struct.pack("<cBBBII", b"l", METHOD_CALL, 0, 1, len(body), serial))
    _write(head, "a(yv)", fields)
    _pad(head, 8)
    return bytes(head + body)


# -- reading -----------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order
        self.at = 0

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self._data):
            raise WireError("a message that ends too early")
        self.at += count
        return self._data[self.at - count : self.at]

    def align(self, alignment: int) -> None:
        self._take(-self.at % alignment)

    def read(self, kind: str, depth: int = 0) -> Any:
        code = kind[0]
        if depth > _MAX_DEPTH:
            raise WireError("a value that goes too deep")
        self.align(_alignment(code))
        if code in _FIXED:
            form = self._order + _FIXED[code]
            value = struct.unpack(form, self._take(struct.calcsize(form)))[0]
            return bool(value) if code == "b" else value
        if code in "so":
            return self._text(self.read("u"))
        if code == "g":
            return self._text(self.read("y"))
        if code == "v":
            inner = split_signature(self.read("g"))
            if len(inner) != 1:
                raise WireError("a variant of more than one type")
            return self.read(inner[0], depth + 1)
        if code == "(":
            return tuple(self.read(one, depth + 1) for one in split_signature(kind[1:-1]))
        return self._array(kind[1:], depth)

    def _text(self, length: int) -> str:
        raw = self._take(length + 1)
        try:
            return raw[:-1].decode()
        except UnicodeDecodeError as error:
            raise WireError("a string that is not UTF-8") from error

    def _array(self, element: str, depth: int) -> Any:
        length = self.read("u")
        self.align(_alignment(element[0]))
        end = self.at + length
        if end > len(self._data):
            raise WireError("an array that is longer than its message")
        found: list[Any] = []
        while self.at < end:
            if element[0] == "{":
                self.align(8)
                key, held = split_signature(element[1:-1])
                found.append((self.read(key, depth + 1), self.read(held, depth + 1)))
            else:
                found.append(self.read(element, depth + 1))
        return dict(found) if element[0] == "{" else found


def measure(data: bytes) -> int | None:
    """Length of the message that begins here, in bytes; None while its first bytes are not all there.

    Raises:
        WireError: it is no message, or too long.
    """
    if len(data) < _HEADER:
        return None
    order = {ord("l"): "<", ord("B"): ">"}.get(data[0])
    if order is None or data[3] != 1:
        raise WireError("this is not D-Bus")
    body, _serial, fields = struct.unpack_from(f"{order}III", data, 4)
    length = _HEADER + fields + (-fields % 8) + body
    if length > MAX_MESSAGE:
        raise WireError("a message that is too long")
    return int(length)


def parse_message(data: bytes) -> Message:
    """One whole message.

    Raises:
        WireError: it is not well formed. No other error, whatever the bytes.
    """
    length = measure(data)
    if length is None or length > len(data):
        raise WireError("a message that ends too early")
    order = "<" if data[0] == ord("l") else ">"
    reader = _Reader(data[:length], order)
    reader.at = 12
    try:
        fields: dict[int, Any] = dict(reader.read("a(yv)"))
        reader.align(8)
        body = _Reader(data[reader.at : length], order)
        signature = fields.get(_FIELD_SIGNATURE, "")
        arguments = tuple(body.read(kind) for kind in split_signature(signature))
        texts = {number: fields.get(number, "") for number in (1, 2, 3, 4, 6, 7)}
        if not all(isinstance(text, str) for text in texts.values()):
            raise WireError("a header field of the wrong type")
        return Message(
            kind=data[1],
            flags=data[2],
            serial=struct.unpack_from(f"{order}I", data, 8)[0],
            reply_to=int(fields.get(_FIELD_REPLY, 0)),
            fd_count=int(fields.get(_FIELD_FDS, 0)),
            signature=signature,
            arguments=arguments,
            path=texts[_FIELD_PATH],
            interface=texts[_FIELD_INTERFACE],
            member=texts[_FIELD_MEMBER],
            error=texts[_FIELD_ERROR],
            destination=texts[_FIELD_DESTINATION],
            sender=texts[_FIELD_SENDER],
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(str(error)) from error
