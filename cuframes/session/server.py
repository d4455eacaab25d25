"""The publisher's side of the socket: one thread that admits subscribers and notices when they go.

Each connection is a :class:`Peer` that moves through HELLO, SUBSCRIBE, ACTIVE. Whatever one peer sends, the others are
not touched: its mistakes end its own connection.
"""

import contextlib
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path

from cuframes._core import FrameWriter
from cuframes._mapped import PASS_FD, PINS
from cuframes.errors import ProtocolError, SegmentTruncated
from cuframes.segment import is_socket
from cuframes.session import wire
from cuframes.session.wire import ErrorCode, MessageType

__all__ = ["Server"]

log = logging.getLogger("cuframes")

HANDSHAKE_SECONDS = 2.0
MAX_CONNECTIONS = 128
SO_PEERGROUPS = 59


class State(Enum):
    """What a peer has to send next."""

    HELLO = auto()
    SUBSCRIBE = auto()
    ACTIVE = auto()


class Refused(Exception):
    """Ends one peer's connection, with a reason that it is told."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Peer:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parser = wire.Parser()
        self.state = State.HELLO
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self.name = ""
        self.features = 0
        self.bit = 0
        self.event_fd = -1
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid, self.uid, self.gid = struct.unpack("3i", credentials)

    def groups(self) -> set[int]:
        """The process's groups; the supplementary ones too, unless there are more than 256 (Python asks for 1 KiB)."""
        try:
            raw = self.sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        except OSError:
            raw = b""
        return {self.gid, *struct.unpack(f"{len(raw) // 4}I", raw)}


class Server:
    """Listens on a publisher's socket until closed.

    Parameters
    ----------
    path : Path
        The socket; an old one is replaced, since the caller owns the key's segment.
    writer : FrameWriter
        Subscribers join and leave it.
    welcome : Welcome
        What a subscriber with all our features is told.
    descriptors : list of int
        Sent to subscribers that can receive them. They become the server's.
    gid : int or None
        A group whose members may subscribe besides our own user and root.
    """

    def __init__(
        self, path: Path, writer: FrameWriter, welcome: wire.Welcome, descriptors: list[int], gid: int | None = None
    ) -> None:
        self.path = path
        self._writer = writer
        self._welcome = welcome
        self._descriptors = descriptors
        self._gid = gid
        self._peers: set[Peer] = set()
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(path, gid)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"cuframes:{path.stem}", daemon=True)
        self._thread.start()

    def share_packets(self, path: str, descriptor: int) -> None:
        """From now on announce a packet ring too. The descriptor becomes the server's."""
        self._descriptors = [*self._descriptors, descriptor]  # the thread sees this first, and then the path
        self._welcome = self._welcome._replace(packets_path=path)

    def close(self) -> None:
        """Tell every subscriber, hang up, remove the socket. The writer has announced the end already."""
        self._stopping = True
        with contextlib.suppress(OSError):  # the thread has failed, and cleaned up
            os.eventfd_write(self._wake, 1)
        self._thread.join()

    def forget(self) -> None:
        """In a forked child: close our copies of the descriptors, so that the parent's peers see it when it dies."""
        for sock in (self._listener, *(peer.sock for peer in self._peers)):
            sock.close()
        for fd in (self._wake, *self._descriptors, *(peer.event_fd for peer in self._peers if peer.event_fd >= 0)):
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(OSError):
            self._selector.close()

    # ---- the thread
    # ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(self._next_deadline()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data is not None:
                        self._serve(key.data)
                self._end_slow_handshakes()
        except Exception:  # keep the publisher going; nobody new can join
            log.exception("the session server of %s failed; no further subscriber can join", self.path)
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        for peer in list(self._peers):
            if peer.state is State.ACTIVE:
                self._send(peer, wire.pack(MessageType.SHUTDOWN))
            self._drop(peer)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._selector.close()
        for fd in (self._wake, *self._descriptors):
            os.close(fd)

    def _next_deadline(self) -> float | None:
        waiting = [peer.deadline for peer in self._peers if peer.state is not State.ACTIVE]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _end_slow_handshakes(self) -> None:
        now = time.monotonic()
        for peer in [p for p in self._peers if p.state is not State.ACTIVE and p.deadline <= now]:
            text = f"the handshake took longer than {HANDSHAKE_SECONDS:.0f} s"
            self._refuse(peer, Refused(ErrorCode.TOO_SLOW, text))

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as problem:  # it hung up again, or we are out of descriptors
            log.warning("%s: cannot accept a connection: %s", self.path, problem)
            time.sleep(0.1)
            return
        sock.setblocking(False)
        peer = Peer(sock)
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)
        if len(self._peers) > MAX_CONNECTIONS:
            self._refuse(peer, Refused(ErrorCode.RESOURCES, "too many connections"))
        elif not self._allowed(peer):
            text = f"uid {peer.uid} may not subscribe: the publisher runs as uid {os.getuid()}; share it with group="
            self._refuse(peer, Refused(ErrorCode.NOT_ALLOWED, text))

    def _allowed(self, peer: Peer) -> bool:
        return peer.uid in (os.getuid(), 0) or (self._gid is not None and self._gid in peer.groups())

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
        except OSError as problem:  # no descriptor left for an event, say
            self._refuse(peer, Refused(ErrorCode.RESOURCES, f"the publisher cannot serve this now: {problem.strerror}"))

    def _handle(self, peer: Peer, message: wire.Message) -> None:
        match message.type, peer.state:
            case MessageType.PING, _:
                self._send(peer, wire.pack(MessageType.PONG, message.payload))
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
        if hello.version not in wire.VERSIONS:
            raise Refused(
                ErrorCode.VERSION, f"protocol version {hello.version} is unknown; this publisher speaks 1 to 3"
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
        self._send(peer, welcome.pack(), self._descriptors if passing else ())
        peer.state = State.SUBSCRIBE

    def _subscribe(self, peer: Peer) -> None:
        place = self._writer.join(peer.name.encode(), peer.pid)
        if place is None:
            raise Refused(ErrorCode.NO_PLACE, "the ring has 31 subscribers and no place for another")
        peer.bit, seq, frame_no = place
        peer.state = State.ACTIVE
        log.info("%s: subscriber %s (pid %d) joined", self.path.stem, peer.name, peer.pid)
        self._send(peer, wire.Subscribed(0, peer.bit, seq, frame_no if peer.features & PINS else 0).pack())

    def _event(self, peer: Peer) -> None:
        if peer.event_fd < 0:
            peer.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._writer.feed(peer.bit, peer.event_fd)
        self._send(peer, wire.pack(MessageType.EVENT_FD), [peer.event_fd])

    # ---- ends
    # ---------------------------------------------------------------------------------------------------------

    def _send(self, peer: Peer, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send without waiting: a peer that does not read its few small replies is dropped."""
        try:
            sent = wire.send(peer.sock, data, descriptors)
        except OSError:
            sent = 0
        if sent != len(data):
            self._drop(peer)

    def _refuse(self, peer: Peer, refusal: Refused) -> None:
        log.warning("%s: refused %s (pid %d): %s", self.path.stem, peer.name or "a peer", peer.pid, refusal)
        # The response that a plain version 3 peer waits for says no; the text is for those who read on.
        response = b""
        if refusal.code not in (ErrorCode.MALFORMED, ErrorCode.OUT_OF_ORDER, ErrorCode.TOO_SLOW):
            if peer.state is State.HELLO:
                response = wire.Welcome(-refusal.code).pack()
            elif peer.state is State.SUBSCRIBE:
                response = wire.Subscribed(-refusal.code).pack()
        self._send(peer, response + wire.error(refusal.code, str(refusal)))
        self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        """End a connection and clear its place in the ring, once."""
        if peer not in self._peers:
            return
        self._peers.remove(peer)
        self._selector.unregister(peer.sock)
        if peer.state is State.ACTIVE:
            self._writer.leave(peer.bit)
            log.info("%s: subscriber %s (pid %d) left", self.path.stem, peer.name, peer.pid)
        if peer.event_fd >= 0:
            os.close(peer.event_fd)  # after leave: the writer no longer feeds it
        peer.sock.close()


def _listen(path: Path, gid: int | None) -> socket.socket:
    if path.exists() and not is_socket(path):
        raise FileExistsError(f"{path} exists and is not a socket; remove it")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        if gid is None:
            path.chmod(0o600)
        else:
            os.chown(path, -1, gid)
            path.chmod(0o660)
            if path.parent.stat().st_uid == os.getuid():
                os.chown(path.parent, -1, gid)
                path.parent.chmod(path.parent.stat().st_mode & 0o7777 | 0o010)  # members may pass through, not list
        listener.listen(MAX_CONNECTIONS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
