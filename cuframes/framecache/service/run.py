"""Running the service: its listening socket and its log."""

import contextlib
import errno
import ipaddress
import json
import logging
import logging.config
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from cuframes.framecache.service.app import create_app
from cuframes.framecache.service.guard import LOOPBACK_NAMES
from cuframes.framecache.service.registry import Registry
from cuframes.framecache.service.server import Connection, Server

__all__ = ["serve"]

log = logging.getLogger("cuframes.framecache")

ANY = ("0.0.0.0", "::")
SHUTDOWN_SECONDS = 5
BACKLOG = 2048


def serve(
    open_registry: Callable[[], Registry],
    *,
    host: str,
    port: int,
    token: str | None = None,
    allow_hosts: tuple[str, ...] = (),
    log_format: str = "json",
    log_level: str = "info",
) -> None:
    """Answer requests until SIGINT or SIGTERM. Slots stay.

    `open_registry` is called after logging is set up, because it logs the slots that it adopts.

    Raises
    ------
    ValueError
        The address can be reached from other hosts and there is no token, or the token is not valid.
    OSError
        The address is in use, or does not belong to this host.
    """
    if token is not None and not token.strip():
        raise ValueError("the token is empty; leave it out, or set one")
    if token is not None and not all("!" <= c <= "~" for c in token):
        raise ValueError("the token must be printable ASCII without spaces: it is sent in an HTTP header")
    if not _is_loopback(host) and token is None:
        raise ValueError(
            f"{host} can be reached from other hosts, and anyone who can reach the service can remove slots: set a "
            "token (CUFRAMES_FRAMECACHE_TOKEN), or listen on 127.0.0.1"
        )
    configure_logging(log_format, log_level)
    registry = open_registry()
    hosts = {*LOOPBACK_NAMES, *allow_hosts} | (set() if host in ANY else {host})
    app = create_app(registry, token=token, allowed_hosts=hosts)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http=Connection,
        ws="none",
        proxy_headers=False,  # the client is the connection's other end, whatever a header says
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    with _listen(host, port) as listening:
        # Scripts wait for this line. With port 0 they learn the port from it.
        log.info("listening", extra={"host": host, "port": listening.getsockname()[1], **registry.summary()})
        server = Server(config, registry.refresh)
        with _ended_by_signals(server):
            server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as problem:
        if problem.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            problem.errno,
            f"port {port} of {host} is in use, perhaps by another framecache service; choose another port",
        ) from None


@contextlib.contextmanager
def _ended_by_signals(server: Server) -> Iterator[None]:
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def configure_logging(format: str, level: str) -> None:
    """One line per event on standard error: a JSON object, or text for people."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger", "message": "event"},
                    "datefmt": "%Y-%m-%dT%H:%M:%S%z",
                },
                "text": {"()": "cuframes.framecache.service.run.TextFormatter"},
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": format, "stream": sys.stderr}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "cuframes": {"level": level.upper()},
                "uvicorn.error": {"level": "WARNING"},
            },
        }
    )


class TextFormatter(logging.Formatter):
    """Formats an event as one line: time, level, event, values.

    Values that came from outside cannot end the line, begin another, move the cursor or look like further values. The
    lines of a traceback are indented.
    """

    _usual = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line."""
        more = [f"{name}={_value(value)}" for name, value in record.__dict__.items() if name not in self._usual]
        return " ".join([_visible(super().formatMessage(record)), *more])

    def formatException(self, ei: Any) -> str:
        """Indented lines."""
        return "\n".join(f"  {_visible(line)}" for line in super().formatException(ei).split("\n"))


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else _visible(json.dumps(text, ensure_ascii=False))


_PLAIN = re.compile(r"[A-Za-z0-9._:/%+-]+", re.ASCII)


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
