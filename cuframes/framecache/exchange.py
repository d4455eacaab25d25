"""One HTTP request and its answer, with one deadline for all of it.

A timeout of ``urllib`` or ``http.client`` limits each single operation on the socket: a server that sends a byte now
and then can keep a call waiting for ever. Here each operation gets only the time that is left.
"""

import functools
import http.client
import io
import socket
import time
from typing import Any
from urllib.parse import SplitResult

__all__ = ["MAX_ANSWER", "exchange"]

MAX_ANSWER = 64 << 20  # bytes; a list of 100 000 slots takes half of this


def left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError when it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("it took too long")
    return seconds


class Bytes(io.RawIOBase):
    """The bytes that arrive on a socket until a deadline. `raw` is the socket's own file; it keeps the socket open."""

    def __init__(self, connection: socket.socket, raw: Any, deadline: float) -> None:
        self._connection = connection
        self._raw = raw
        self._deadline = deadline

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, into: Any) -> int | None:
        """Read the bytes that have arrived, or wait for the first."""
        self._connection.settimeout(left(self._deadline))
        count: int | None = self._raw.readinto(into)
        return count

    def close(self) -> None:
        """Close the socket's file as well."""
        self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An HTTP answer that must be complete by a deadline."""

    def __init__(self, deadline: float, connection: socket.socket, *more: Any, **named: Any) -> None:
        super().__init__(connection, *more, **named)
        self.fp = io.BufferedReader(Bytes(connection, self.fp.detach(), deadline))


def exchange(
    url: SplitResult, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
) -> tuple[int, bytes]:
    """Send a request; return the status and the body of the answer.

    Redirections are not followed and proxies are not used: the service is on this host.

    Raises
    ------
    OSError
        No complete answer came within `timeout` seconds (TimeoutError), or there was no connection.
    http.client.HTTPException
        The answer is not HTTP, is cut off, or is longer than MAX_ANSWER.
    """
    deadline = time.monotonic() + timeout
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    port = kind.default_port if url.port is None else url.port
    connection = kind(str(url.hostname), port)
    try:
        connection.sock = connect(str(url.hostname), port, deadline)
        if isinstance(connection, http.client.HTTPSConnection):
            import ssl

            context = ssl.create_default_context()
            connection.sock.settimeout(left(deadline))
            connection.sock = context.wrap_socket(connection.sock, server_hostname=url.hostname)
        connection.response_class = functools.partial(Answer, deadline)  # type: ignore[assignment]
        connection.sock.settimeout(left(deadline))
        connection.request(method, url.path.rstrip("/") + path, body, headers)
        with connection.getresponse() as answer:
            content = answer.read(MAX_ANSWER + 1)
            if len(content) > MAX_ANSWER:
                raise http.client.HTTPException(f"its answer has more than {MAX_ANSWER} bytes")
            # read(n) raises nothing when the connection ends before n bytes have come.
            if answer.length:
                raise http.client.IncompleteRead(content, answer.length)
            return answer.status, content
    finally:
        connection.close()


def connect(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to the first address of a host that accepts a connection."""
    problem: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            connection = socket.socket(family, kind, protocol)
        except OSError as unsupported:
            problem = unsupported
            continue
        try:
            connection.settimeout(left(deadline))
            connection.connect(address)
        except OSError as failure:
            connection.close()
            problem = failure
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise problem or OSError(f"{host} has no address")
