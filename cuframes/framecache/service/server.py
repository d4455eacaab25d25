"""Connections: how many, for how long, and which are closed when there are too many."""

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection", "Server"]

log = logging.getLogger("cuframes.framecache")

MAX_CONNECTIONS = 1024  # or half of the descriptors that this process may have
PATIENCE_SECONDS = 1.0  # a connection that has been idle this long is closed if others are waiting for its place
REQUEST_SECONDS = 15.0  # a whole request must come within this time of the connection's start, or of the last answer
SWEEP_TICKS = 10  # of 0.1 s
QUIET_SECONDS = 60.0  # between two lines of the log about the same problem


class Connection(H11Protocol):
    """A connection that knows how long the service has been waiting for its client."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._since = time.monotonic()

    def on_response_complete(self) -> None:
        """The next request may come."""
        self._since = time.monotonic()
        super().on_response_complete()

    @property
    def waiting_since(self) -> float | None:
        """When the wait for the client began, on the monotonic clock; None while the client waits for the service.

        The service waits for a whole request, headers and body, however slowly it comes, and for the client to take the
        answer.
        """
        cycle = self.cycle
        if cycle is not None and not (cycle.more_body or cycle.response_complete or self.flow.write_paused):
            self._since = time.monotonic()  # the next wait is timed from the end of our work (looked at every second)
            return None
        return self._since

    @property
    def unfinished(self) -> bool:
        """Whether the client has yet to send the rest of the body of its request."""
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete

    def cut_off(self) -> None:
        """Close the connection now, even if something is left to be sent."""
        self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server with limits. By itself it takes any number of connections, and waits for each for ever.

    - There are at most MAX_CONNECTIONS connections. Others wait in the listening socket's queue until a connection is
      closed, or has been idle for PATIENCE_SECONDS: a client with many idle connections keeps no other client out.
    - A request must come within REQUEST_SECONDS, and its answer must be taken within the same time. Otherwise the
      connection is cut off.
    - Every second it calls `refresh` on another thread.
    - When no descriptors are left, the server logs this once, and tries again after a second.
    """

    def __init__(self, config: uvicorn.Config, refresh: Callable[[], object]) -> None:
        super().__init__(config)
        self._refresh = refresh
        self._refreshing: asyncio.Task[None] | None = None
        self._most = max(1, min(MAX_CONNECTIONS, _descriptors(4 * MAX_CONNECTIONS) // 2))
        self._accepting: list[asyncio.Task[None]] = []
        self._told: dict[str, float] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets=[])
        for listening in sockets or []:
            listening.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(listening)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and finish what was begun."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for connection in list(self._connections):
            if connection.unfinished:  # nothing was begun, and to wait for the rest would end in an error
                connection.cut_off()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: cut off connections whose time is over."""
        for task in self._accepting:
            if task.done():  # it never is: without it no connection would be accepted
                task.result()
        if counter % SWEEP_TICKS == 0:
            past = time.monotonic() - REQUEST_SECONDS
            for connection in list(self._connections):
                if (since := connection.waiting_since) is not None and since < past:
                    connection.cut_off()
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refreshed())
        return await super().on_tick(counter)

    async def _refreshed(self) -> None:
        with contextlib.suppress(RuntimeError):  # no thread can be started, or the server ends
            await asyncio.to_thread(self._refresh)

    @property
    def _connections(self) -> "set[Connection]":
        return self.server_state.connections  # type: ignore[return-value]

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room()
            try:
                connection, _ = listening.accept()
                connection.setblocking(False)
            except BlockingIOError:
                await _readable(listening)
                continue
            except ConnectionError:
                continue
            except OSError as problem:  # no descriptors, no memory
                self._tell("connections cannot be accepted", reason=str(problem))
                self._cut_oldest(0.0)
                await asyncio.sleep(1)
                continue
            try:
                await loop.connect_accepted_socket(self._connection, connection)
            except OSError:  # it is gone already
                connection.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are :func:`cuframes.framecache.service.run.serve`'s, from before the loop until after it: a handler
        that raises would raise in a callback of the loop, which logs that as a fault and goes on.
        """
        yield

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def _room(self) -> None:
        """Wait for a place for one more connection. The connections that have been waited for longest are closed."""
        while len(self._connections) >= self._most:
            if self._cut_oldest(PATIENCE_SECONDS):
                self._tell("too many connections: idle ones are closed", most=self._most)
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.02)

    def _cut_oldest(self, idle_seconds: float) -> bool:
        """Cut off up to an eighth of the connections at once, so that this is not done for each new one."""
        until = time.monotonic() - idle_seconds
        waiting = [(since, c) for c in self._connections if (since := c.waiting_since) is not None and since <= until]
        waiting.sort(key=lambda entry: entry[0])
        for _, connection in waiting[: 1 + self._most // 8]:
            self._connections.discard(connection)
            connection.cut_off()
        return bool(waiting)

    def _tell(self, event: str, **details: Any) -> None:
        """Log a problem, at most once in QUIET_SECONDS."""
        now = time.monotonic()
        if now - self._told.get(event, -QUIET_SECONDS) >= QUIET_SECONDS:
            self._told[event] = now
            log.warning(event, extra=details)


async def _readable(listening: socket.socket) -> None:
    """Wait until somebody wants to connect.

    Not ``loop.sock_accept``: when it is cancelled in the very round of the loop in which somebody connects, it takes
    the connection, has nobody to give it to, and leaves it open and a traceback in the log.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(listening, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(listening)


def _descriptors(wanted: int) -> int:
    """Ask for `wanted` descriptors; return how many this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
