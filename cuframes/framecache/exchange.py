"""One HTTP request and its answer, with one deadline for all of it.

``urllib`` and ``http.client`` take a timeout for every single operation on the socket: a server that sends a byte now
and then keeps them for ever. Here each operation gets what is left.
"""

import functools
import http.client
import io
import socket
import time
from typing import Any
from urllib.parse import SplitResult

__all__ = ["MAX_ANSWER", "exchange"]

MAX_ANSWER = 64 << 20  # bytes; a list of 100 000 slots has half of it


def left(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError when it is past."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("it took too long")
    return seconds


class Bytes(io.RawIOBase):
    """What comes from a socket until a deadline. `raw` is the socket's own file, and keeps it open."""

    def __init__(self, connection: socket.socket, raw: Any, deadline: float) -> None:
        self._connection = connection
        self._raw = raw
        self._deadline = deadline

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, into: Any) -> int | None:
        """As many bytes as are there, or as come first."""
        self._connection.settimeout(left(self._deadline))
        count: int | None = self._raw.readinto(into)
        return count

    def close(self) -> None:
        """Close the socket's file as well."""
        self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer that is read until a deadline."""

    def __init__(self, deadline: float, connection: socket.socket, *more: Any, **named: Any) -> None:
        super().__init__(connection, *more, **named)
        self.fp = io.BufferedReader(Bytes(connection, self.fp.detach(), deadline))


def exchange(
    url: SplitResult, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
) -> tuple[int, bytes]:
    """Status and body of the answer. Follows no redirection, and knows no proxies: the service is on this host.

    Raises
    ------
    OSError
        There was none within `timeout` seconds (TimeoutError), or no connection.
    http.client.HTTPException
        It was no answer of HTTP, cut off, or longer than MAX_ANSWER.
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
            # A read of so many bytes is content with fewer.
            if answer.length:
                raise http.client.IncompleteRead(content, answer.length)
            return answer.status, content
    finally:
        connection.close()


def connect(host: str, port: int, deadline: float) -> socket.socket:
    """A connection to the first address of a host that takes one."""
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
