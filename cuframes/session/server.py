"""The publisher's side of the socket: one thread that admits subscribers and notices when they go.

Each connection is a :class:`Peer` that moves through HELLO, SUBSCRIBE, ACTIVE. An error of one peer ends only that
peer's connection.
"""

import contextlib
import errno
import fcntl
import logging
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path

from cuframes._core import FrameWriter
from cuframes._native.control import MAX_SUBSCRIBERS, PASS_FD, PINS
from cuframes._native.ring_end import Descriptor
from cuframes.errors import ProtocolError, SegmentTruncated
from cuframes.host import lifetime
from cuframes.host.names import peer_credentials, peer_groups
from cuframes.host.segment import OwnedSegment
from cuframes.session import wire
from cuframes.session.listener import Listener
from cuframes.session.wire import ErrorCode, MessageType

__all__ = ["Server"]

log = logging.getLogger("cuframes")

HANDSHAKE_SECONDS = 2.0
MAX_CONNECTIONS = 128
LOOK_SECONDS = 0.5  # how often the thread looks whether its files and its subscribers' events are as they should be
PAUSE_SECONDS = 0.1  # how long nobody is accepted when descriptors have run out
# A neighbour that comes and goes, or is refused, all the time must not fill the disk with log lines: at most this many
# in this time.
LOG_LINES = 100
LOG_SECONDS = 60.0
CLOSE_SECONDS = 2.0  # how long close() waits for the thread; it may be in a log handler that waits for us
START_SECONDS = 1.0  # how long a thread may take to start


class State(Enum):
    """The message that a peer has to send next."""

    HELLO = auto()
    SUBSCRIBE = auto()
    ACTIVE = auto()


class Refused(Exception):
    """Ends one peer's connection. The peer is sent the reason."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Peer:
    """One connection."""

    def __init__(self, sock: socket.SocketType) -> None:
        self.sock = sock
        self.parser = wire.Parser()
        self.state = State.HELLO
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self.name = ""
        self.asked = ""  # the name that it asked for
        self.features = 0
        self.bit = 0
        self.event_fd = -1
        self.lacks_event = False  # it has asked for one, and there was no descriptor for it
        self.blocked = False  # it has made its event one that the writer would wait for
        self.pid, self.uid, _ = peer_credentials(sock)


class Server:
    """Listens on a publisher's socket from :meth:`start` until closed.

    The thread fails closed. An error that concerns one peer ends that peer's connection. Any other error ends the
    publisher for all subscribers: without this thread, dead subscribers would not be detected, and publishing would
    overwrite held frames or wait for subscribers that are gone.

    Parameters
    ----------
    path : Path
        The socket. An old socket is replaced, since the caller holds the key's lock.
    writer : FrameWriter
        Subscribers join and leave it.
    welcome : Welcome
        The HELLO_RESP for a subscriber that has all features of this publisher.
    descriptors : list of Descriptor
        Sent to subscribers that can receive them. If the constructor succeeds, the server owns them.
    gid : int or None
        A group whose members may subscribe, besides this process's user and root.
    segments : sequence of OwnedSegment
        Segments whose files are checked regularly: see :meth:`OwnedSegment.look`.
    """

    def __init__(
        self,
        path: Path,
        writer: FrameWriter,
        welcome: wire.Welcome,
        descriptors: list[Descriptor],
        gid: int | None = None,
        segments: Sequence[OwnedSegment] = (),
    ) -> None:
        self.path = path
        self._writer = writer
        self._welcome = welcome
        self._descriptors: list[Descriptor] = []
        self._gid = gid
        self._segments = list(segments)
        self._peers: set[Peer] = set()
        self._stopping = False
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._paused_until: float | None = None
        self._short = False  # of descriptors; said once
        self._log_until, self._said, self._unsaid = 0.0, 0, 0
        self._ending = threading.RLock()  # around what close(), share_packets() and the thread's end do
        with contextlib.ExitStack() as made:
            self._selector = selectors.DefaultSelector()
            made.callback(self._selector.close)
            self._listener = Listener(path, gid)
            made.callback(self._listener.close)
            self._wake = Descriptor.eventfd()
            made.callback(self._wake.close)
            self._spare = Descriptor.open("/", os.O_PATH)  # given up to accept a connection, to be refused
            made.callback(self._spare.close)
            self._selector.register(self._listener.sock, selectors.EVENT_READ)
            self._selector.register(self._wake, selectors.EVENT_READ)
            self._thread = threading.Thread(target=self._run, name=f"cuframes:{path.stem}", daemon=True)
            self._starting = False
            self._descriptors = descriptors
            made.pop_all()

    def start(self) -> None:
        """Start the thread. If this fails or is interrupted, the caller must call :meth:`close`."""
        self._starting = True
        self._thread.start()

    def share_packets(self, path: str, descriptor: Descriptor, segment: OwnedSegment) -> None:
        """Also announce a packet ring from now on. The server takes over the descriptor."""
        with self._ending:
            if self._stopping:
                descriptor.close()
                return
            self._segments = [*self._segments, segment]
            self._descriptors = [*self._descriptors, descriptor]  # the thread sees this first, and then the path
            self._welcome = self._welcome._replace(packets_path=path)

    def close(self) -> None:
        """Tell every subscriber, hang up, and remove the socket. The writer has already announced the end.

        May be called on the server's own thread, if a garbage-collected publisher is closed there. The thread then ends
        when it returns to its loop.
        """
        with self._ending:
            self._stopping = True
            if not self._wake.closed:
                os.eventfd_write(self._wake.fileno(), 1)
        try:
            if threading.current_thread() is not self._thread:
                self._join()
        finally:
            # Before the caller gives up the key, whatever the thread is busy with.
            self._listener.close()

    def _join(self) -> None:
        """Wait for the thread. If it was never started, release here what it would release."""
        end = time.monotonic() + (START_SECONDS if self._starting else 0)
        while True:
            try:
                self._thread.join(CLOSE_SECONDS)
                return
            except RuntimeError:  # it was not started, or start() was interrupted just now
                if time.monotonic() >= end:
                    break
            time.sleep(0.001)
        self._shut_down()

    def forget(self) -> None:
        """In a forked child: close the copies of the descriptors, so that peers notice when the parent dies."""
        self._listener.forget()
        for peer in self._peers:
            lifetime.close_owned(peer.sock)
        events = [peer.event_fd for peer in self._peers if peer.event_fd >= 0]
        for descriptor in (self._wake, self._spare, *self._descriptors):
            descriptor.close()
        for fd in events:
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(OSError):
            self._selector.close()

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(self._next_deadline()):
                    if self._stopping:
                        break
                    if key.fileobj is self._listener.sock:
                        self._accept()
                    elif key.data is not None:
                        self._serve(key.data)
                self._end_slow_handshakes()
                if self._paused_until is not None and time.monotonic() >= self._paused_until:
                    self._resume()
                if time.monotonic() >= self._next_look:
                    self._look()
        except BaseException as problem:
            if not self._stopping:
                # First the ring, then the log: from here on nothing may be published.
                self._writer.fail(f"this publisher has failed and shares nothing any more: {problem!r}; open a new one")
                with contextlib.suppress(Exception):
                    log.exception("the session server of %s failed, so its publisher has ended", self.path)
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        # Nothing is published any more, so pins and places need not be cleared; and if we have failed they must not be:
        # a frame that was begun before may still be written.
        try:
            with contextlib.ExitStack() as ending:  # the last first, and each whatever another raises
                ending.callback(self._close_descriptors)
                ending.callback(self._listener.close)
                for peer in self._peers:
                    ending.callback(self._hang_up, peer)
        except Exception:
            log.exception("closing the session server of %s failed", self.path)

    def _hang_up(self, peer: Peer) -> None:
        if peer.state is State.ACTIVE:
            with contextlib.suppress(OSError):
                wire.send(peer.sock, wire.pack(MessageType.SHUTDOWN))
        if peer.event_fd >= 0:
            self._writer.feed(peer.bit, -1)
            os.close(peer.event_fd)
        lifetime.close_owned(peer.sock)

    def _close_descriptors(self) -> None:
        self._selector.close()
        with self._ending:
            self._stopping = True
            for descriptor in (self._wake, self._spare, *self._descriptors):
                descriptor.close()
            self._descriptors = []

    def _next_deadline(self) -> float:
        waiting = [peer.deadline for peer in self._peers if peer.state is not State.ACTIVE]
        if self._paused_until is not None:
            waiting.append(self._paused_until)
        return max(0.0, min([self._next_look, *waiting]) - time.monotonic())

    def _end_slow_handshakes(self) -> None:
        now = time.monotonic()
        for peer in [p for p in self._peers if p.state is not State.ACTIVE and p.deadline <= now]:
            text = f"the handshake took longer than {HANDSHAKE_SECONDS:.0f} s"
            self._refuse(peer, Refused(ErrorCode.TOO_SLOW, text))

    def _look(self) -> None:
        """Restore files that were removed, and find subscribers that would block the writer."""
        self._next_look = time.monotonic() + LOOK_SECONDS
        if self._unsaid and time.monotonic() >= self._log_until:
            self._say(logging.WARNING, "going on after %d lines that were left out of the log", self._unsaid)
        self._unblock()
        for peer in [peer for peer in self._peers if peer.blocked]:
            self._refuse(peer, Refused(ErrorCode.MALFORMED, "the event is the publisher's to fill, and not to block"))
        for peer in [peer for peer in self._peers if peer.lacks_event]:
            self._event(peer)
        # The lock first: a socket is bound by whoever holds it.
        held = [segment.look() for segment in self._segments]
        if held and held[0] and (old := self._listener.look()) is not None:
            with contextlib.suppress(KeyError):  # paused
                self._selector.unregister(old)
                self._selector.register(self._listener.sock, selectors.EVENT_READ)
            lifetime.close_owned(old)

    def _unblock(self) -> None:
        """Undo what would block the writer: an eventfd that a subscriber has made blocking, or filled.

        The writer writes to eventfds under the lock that joins and departures take, so this comes before them.
        """
        for peer in self._peers:
            if peer.event_fd >= 0:
                poller = select.poll()
                poller.register(peer.event_fd, select.POLLOUT)
                blocking = not fcntl.fcntl(peer.event_fd, fcntl.F_GETFL) & os.O_NONBLOCK
                if blocking or not poller.poll(0):
                    os.set_blocking(peer.event_fd, False)
                    # Lets a writer go that waits for room. Not eventfd_read: the subscriber can make that block.
                    with contextlib.suppress(BlockingIOError):
                        os.preadv(peer.event_fd, [bytearray(8)], -1, os.RWF_NOWAIT)
                    peer.blocked = True

    def _accept(self) -> None:
        try:
            sock = lifetime.accept(self._listener.sock)
        except BlockingIOError:
            return
        except OSError as problem:
            self._cannot_accept(problem)
            return
        self._short = False
        try:
            peer = Peer(sock)
            self._selector.register(sock, selectors.EVENT_READ, peer)
            self._peers.add(peer)
        except OSError as problem:  # max_user_watches, say
            self._say(logging.WARNING, "cannot serve a connection: %s", problem)
            _turn_away(sock)
            return
        if len(self._peers) > MAX_CONNECTIONS:
            self._refuse(peer, Refused(ErrorCode.RESOURCES, "too many connections; try again"))
        elif not self._allowed(peer):
            text = f"uid {peer.uid} may not subscribe: the publisher runs as uid {os.getuid()}; share it with group="
            self._refuse(peer, Refused(ErrorCode.NOT_ALLOWED, text))

    def _cannot_accept(self, problem: OSError) -> None:
        if not self._short:
            self._say(logging.WARNING, "cannot accept a connection: %s", problem)
        self._short = True
        if problem.errno in (errno.EMFILE, errno.ENFILE) and not self._spare.closed:
            self._spare.close()
            with contextlib.suppress(OSError):
                _turn_away(lifetime.accept(self._listener.sock))
        # Whoever waits would otherwise be announced again and again.
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._listener.sock)
        self._paused_until = time.monotonic() + PAUSE_SECONDS

    def _resume(self) -> None:
        if self._spare.closed:
            with contextlib.suppress(OSError):
                self._spare = Descriptor.open("/", os.O_PATH)
        self._selector.register(self._listener.sock, selectors.EVENT_READ)
        self._paused_until = None

    def _allowed(self, peer: Peer) -> bool:
        return peer.uid in (os.getuid(), 0) or (self._gid is not None and self._gid in peer_groups(peer.sock))

    def _serve(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        peer.parser.feed(data)
        try:
            while peer in self._peers and (message := peer.parser.next()):
                self._handle(peer, message)
        except Refused as refusal:
            self._refuse(peer, refusal)
        except SegmentTruncated as problem:  # ours, so nobody can join any more
            self._refuse(peer, Refused(ErrorCode.RESOURCES, f"the publisher's {problem}"))
        except ProtocolError as problem:
            self._refuse(peer, Refused(ErrorCode.MALFORMED, str(problem)))
        except (OSError, MemoryError) as problem:  # no descriptor left for an event, say
            self._refuse(peer, Refused(ErrorCode.RESOURCES, f"the publisher cannot serve this now: {problem}"))

    def _handle(self, peer: Peer, message: wire.Message) -> None:
        match message.type, peer.state:
            case MessageType.PING, _:
                self._send(peer, wire.pack(MessageType.PONG, message.payload))
            case MessageType.HELLO_REQ, State.HELLO if self._writer.closed:
                # The stream has ended, but this thread has not yet. Its subscribers already look for the next
                # publisher: they must not be told that their own names are in use.
                self._drop(peer)
            case MessageType.HELLO_REQ, State.HELLO:
                self._hello(peer, wire.Hello.unpack(message.payload))
            case MessageType.SUBSCRIBE_REQ, State.SUBSCRIBE:
                self._subscribe(peer)
            case MessageType.EVENT_FD, State.ACTIVE:
                self._event(peer)
            case MessageType.UNSUBSCRIBE, State.ACTIVE:
                self._drop(peer)
            case _:
                text = f"message type {message.type} makes no sense now ({peer.state.name.lower()} expected)"
                raise Refused(ErrorCode.OUT_OF_ORDER, text)

    def _hello(self, peer: Peer, hello: wire.Hello) -> None:
        peer.asked = hello.name
        if hello.version not in wire.VERSIONS:
            raise Refused(
                ErrorCode.VERSION, f"protocol version {hello.version} is unknown; this publisher supports 1 to 3"
            )
        if any(other.name == hello.name for other in self._peers):
            raise Refused(ErrorCode.NAME_IN_USE, f"a subscriber named {hello.name!r} is connected; choose another name")
        peer.name = hello.name
        peer.features = hello.features
        passing = bool(hello.features & PASS_FD)
        granted = hello.features & (self._welcome.features | PASS_FD)
        # A peer that announces nothing is a plain version 3 program and must see nothing else.
        welcome = self._welcome._replace(
            version=hello.version,
            features=granted,
            packets_path=self._welcome.packets_path if hello.features else "",
        )
        self._send(peer, welcome.pack(), [descriptor.fileno() for descriptor in self._descriptors] if passing else ())
        peer.state = State.SUBSCRIBE

    def _subscribe(self, peer: Peer) -> None:
        self._unblock()
        place = self._writer.join(peer.name.encode(), peer.pid)
        if place is None:
            raise Refused(ErrorCode.NO_PLACE, f"the ring has {MAX_SUBSCRIBERS} subscribers and no place for another")
        peer.bit, seq, frame_no = place
        peer.state = State.ACTIVE
        self._say(logging.INFO, "subscriber %r (pid %d) joined", peer.name, peer.pid)
        self._send(peer, wire.Subscribed(0, peer.bit, seq, frame_no if peer.features & PINS else 0).pack())

    def _event(self, peer: Peer) -> None:
        """Send a subscriber its eventfd: later, if there is no descriptor for it now. It keeps its place meanwhile."""
        if peer.event_fd < 0:
            self._unblock()
            try:
                peer.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError as problem:
                if not peer.lacks_event:
                    self._say(logging.WARNING, "subscriber %r has to wait for its eventfd: %s", peer.name, problem)
                peer.lacks_event = True
                return
            peer.lacks_event = False
            self._writer.feed(peer.bit, peer.event_fd)
        self._send(peer, wire.pack(MessageType.EVENT_FD), [peer.event_fd])

    # ---- ends

    def _send(self, peer: Peer, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send without waiting: a peer that does not read its few small replies is dropped."""
        try:
            sent = wire.send(peer.sock, data, descriptors)
        except OSError:
            sent = 0
        if sent != len(data):
            self._drop(peer)

    def _refuse(self, peer: Peer, refusal: Refused) -> None:
        self._say(logging.WARNING, "refused %r (pid %d): %s", peer.asked, peer.pid, refusal)
        # The response that a plain version 3 peer waits for says no; the text is for those who read on.
        response = b""
        if refusal.code not in (ErrorCode.MALFORMED, ErrorCode.OUT_OF_ORDER, ErrorCode.TOO_SLOW):
            if peer.state is State.HELLO:
                response = wire.Welcome(-refusal.code).pack()
            elif peer.state is State.SUBSCRIBE:
                response = wire.Subscribed(-refusal.code).pack()
        self._send(peer, response + wire.error(refusal.code, str(refusal)))
        self._drop(peer)

    def _say(self, level: int, text: str, *values: object) -> None:
        """Log a line about a peer, unless there were too many such lines."""
        if not log.isEnabledFor(level):
            return
        now = time.monotonic()
        if now >= self._log_until:
            self._log_until, self._said, self._unsaid = now + LOG_SECONDS, 0, 0
        if self._said < LOG_LINES:
            self._said += 1
            log.log(level, f"%s: {text}", self.path.stem, *values)
        else:
            self._unsaid += 1

    def _drop(self, peer: Peer) -> None:
        """End a connection and clear its place in the ring, once."""
        if peer not in self._peers:
            return
        self._unblock()
        self._peers.remove(peer)
        with contextlib.suppress(KeyError):
            self._selector.unregister(peer.sock)
        if peer.state is State.ACTIVE:
            self._writer.remove(peer.bit)
            self._say(logging.INFO, "subscriber %r (pid %d) left", peer.name, peer.pid)
        if peer.event_fd >= 0:
            os.close(peer.event_fd)  # after leave: the writer no longer feeds it
        lifetime.close_owned(peer.sock)


def _turn_away(sock: socket.SocketType) -> None:
    """Tell the peer that it may try again later, and hang up."""
    text = "the publisher is out of descriptors; try again"
    with contextlib.suppress(OSError):
        wire.send(sock, wire.Welcome(-ErrorCode.RESOURCES).pack() + wire.error(ErrorCode.RESOURCES, text))
    lifetime.close_owned(sock)
