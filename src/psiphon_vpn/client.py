# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks to the daemon over the control socket. Blocking and small: asyncio would double the start-up time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

from psiphon_vpn.errors import DaemonDownError, NotRootError, UserError
from psiphon_vpn.i18n import _

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

    Directory = str | os.PathLike[str]
    """The daemon's runtime directory. The quick commands give a string: `pathlib` would be a fifth of their time."""

SOCKET_NAME: Final = "control.sock"
STATUS_SECONDS: Final = 3.0
COMMAND_SECONDS: Final = 60.0
SLEEP_SECONDS: Final = 12.0
"""The longest wait while the machine is going to sleep, less than the limit of the unit's script."""
MAX_ANSWER: Final = 1024 * 1024
_PERMISSION_DENIED: Final = -32001
_REQUEST_ID: Final = 1

Status = dict[str, object]


def request_status(runtime_dir: Directory, *, timeout: float = STATUS_SECONDS) -> Status:
    """Request the status.

    Args:
        runtime_dir: the daemon's runtime directory.
        timeout: seconds to wait for the answer.

    Raises:
        DaemonDownError: nobody answers.
        UserError: the answer is a refusal.
    """
    with _Connection(runtime_dir, timeout=timeout) as connection:
        return connection.call("status")


def send_command(runtime_dir: Directory, name: str, *, timeout: float = COMMAND_SECONDS) -> Status:
    """Send one of the control socket's commands and return the status after it; raises like `request_status`."""
    with _Connection(runtime_dir, timeout=timeout) as connection:
        return connection.call(name)


def watch_status(
    runtime_dir: Directory, *, timeout: float = STATUS_SECONDS, refresh: float | None = None
) -> Iterator[Status]:
    """Yield the status now and at each change; raises DaemonDownError when the daemon ends.

    Args:
        runtime_dir: the daemon's runtime directory.
        timeout: seconds to wait for an answer.
        refresh: also yield it when so many seconds passed without a change; numbers such as bytes change silently.
    """
    with _Connection(runtime_dir, timeout=timeout) as connection:
        yield connection.call("watch")
        waits_for_answer = False
        while True:
            connection.limit(timeout if waits_for_answer else refresh)
            try:
                message = connection.read()
            except DaemonDownError as error:
                if waits_for_answer or not isinstance(error.__cause__, TimeoutError):
                    raise
                connection.send("status")
                waits_for_answer = True
                continue
            waits_for_answer = waits_for_answer and "result" not in message
            status = message.get("params") if message.get("method") == "status" else message.get("result")
            if isinstance(status, dict):
                yield status


class _Connection:
    def __init__(self, runtime_dir: Directory, *, timeout: float) -> None:
        self._timeout = timeout
        self._runtime_dir = runtime_dir
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        self._buffer = b""
        try:
            self._socket.connect(os.path.join(runtime_dir, SOCKET_NAME))
        except OSError as cause:
            self._socket.close()
            self._fail(cause)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def limit(self, seconds: float | None) -> None:
        """Wait so long for the next message; None: for ever."""
        self._socket.settimeout(seconds)

    def send(self, method: str) -> None:
        request = json.dumps({"jsonrpc": "2.0", "id": _REQUEST_ID, "method": method})
        try:
            self._socket.sendall(request.encode() + b"\n")
        except OSError as cause:
            # The daemon may have refused before the request: its reason says more than a broken pipe.
            if not isinstance(cause, BrokenPipeError | ConnectionResetError):
                self._fail(cause)

    def call(self, method: str) -> Status:
        self.send(method)
        answer = self.read()
        if isinstance(error := answer.get("error"), dict):
            _raise_refusal(method, error)
        result = answer.get("result")
        if not isinstance(result, dict):
            raise _nonsense()
        return result

    def read(self) -> dict[str, object]:
        while b"\n" not in self._buffer:
            try:
                received = self._socket.recv(65536)
            except OSError as cause:
                self._fail(cause)
            if not received:
                raise DaemonDownError(_("it closed the connection"))
            self._buffer += received
            if len(self._buffer) > MAX_ANSWER:
                raise _nonsense()
        line, _newline, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise _nonsense()
        return message

    def _fail(self, cause: OSError) -> NoReturn:
        if isinstance(cause, PermissionError):
            from psiphon_vpn.system.layout import Layout

            raise UserError(
                _("Cannot ask the service"),
                _("only root and the users that {path} names may").format(path=Layout().readers),
                _("Run it again with sudo in front, or add your user name there and run: sudo psiphon-vpn reload"),
                exit_code=NotRootError.default_exit_code,
            ) from cause
        if isinstance(cause, TimeoutError):
            why = _("it did not answer within {seconds:g} seconds").format(seconds=self._timeout)
            # It runs, perhaps on a busy computer: to start it would change nothing.
            raise DaemonDownError(why, _("Try again. If it stays so: sudo systemctl restart psiphon-vpn")) from cause
        if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
            raise self._explain_absence() from cause
        raise DaemonDownError(cause.strerror or str(cause)) from cause

    def _explain_absence(self) -> DaemonDownError:
        from psiphon_vpn.system.layout import Layout
        from psiphon_vpn.system.next_step import Need, advise

        layout, why = Layout(), _("it is not running")
        if os.fspath(self._runtime_dir) != str(layout.runtime_dir):
            step = _("Start the service whose directory is {path}.").format(path=self._runtime_dir)
            return DaemonDownError(why, step)
        advice = advise(Need.SERVICE, layout)
        return DaemonDownError(advice.why or why, advice.step)


def _nonsense() -> DaemonDownError:
    return DaemonDownError(_("the program that answers is not the service"))


def _raise_refusal(method: str, error: dict[str, object]) -> NoReturn:
    if error.get("code") == _PERMISSION_DENIED:
        raise NotRootError(f"psiphon-vpn {method}")
    data = error.get("data")
    if isinstance(data, dict) and all(isinstance(data.get(key), str) for key in ("what", "why", "next_step")):
        raise UserError(clean_text(data["what"]), clean_text(data["why"]), clean_text(data["next_step"]))
    raise UserError(
        _("The service refused"),
        clean_text(error.get("message")),
        _("Look for the reason with: journalctl -u psiphon-vpn"),
    )


def clean_text(value: object) -> str:
    """Return text that is safe to show in a terminal: the reader may have more rights than the daemon."""
    return "".join(char if char.isprintable() else " " for char in str(value))
