"""Running the service: where it listens, and what it logs."""

import contextlib
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

    `open_registry` is called when logging is set up, since it has something to log: the slots that it adopts.

    Raises
    ------
    ValueError
        It would listen beyond this host, without a token.
    OSError
        The address is in use, or not ours.
    """
    if token is not None and not token.strip():
        raise ValueError("the token is empty; leave it out, or set one")
    if token is not None and not all("!" <= c <= "~" for c in token):
        raise ValueError("the token must be printable ASCII without spaces, or no request could carry it")
    if not _is_loopback(host) and token is None:
        raise ValueError(
            f"{host} can be reached from elsewhere, and whoever reaches the service can remove slots: set a token "
            "(CUFRAMES_FRAMECACHE_TOKEN), or listen on 127.0.0.1"
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
        proxy_headers=False,  # who asks is who connects, and not what he says of himself
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=BACKLOG) as listening:
        # The line that scripts wait for; with port 0, where they learn the port.
        log.info("listening", extra={"host": host, "port": listening.getsockname()[1], **registry.summary()})
        server = Server(config)
        with _ended_by_signals(server):
            server.run(sockets=[listening])


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
    """Time, event, and what belongs to it: one line that begins with a time, whatever is in it.

    Values that came from outside cannot end the line, begin another, move the cursor or look like further values. A
    traceback's lines are indented.
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
