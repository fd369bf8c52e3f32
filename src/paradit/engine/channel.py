"""One channel between a driver and its ranks: frames of plain values over sockets, with a token a world.

Ranks connect to the driver. Nothing that comes over it is unpickled, and who does not know the token is hung
up on. Torch-free.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import msgspec

from paradit.engine.events import EVENTS
from paradit.progress import Event

Message = tuple[str, tuple[Any, ...]]
"""A word and its values, which are plain."""
LOG = "log"
"""The word for a log record, and for the level from which on the driver wants them."""
EVENT = "event"
"""The word whose values are an event's class and fields."""
ENDED = "ended"
"""The word that the driver hears of a rank that has hung up."""

GREETING_BYTES = 1024
"""Most bytes of what a rank says before it is known."""
_LENGTH = 8


class Connection:
    """A rank's end; several threads may send."""

    def __init__(self, address: str, token: str, rank: int) -> None:
        """address: `host:port`, of the driver's `Hub`."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._one_at_a_time = threading.Lock()
        self._heard = _Frames()
        self.send("hello", token, rank)

    def send(self, word: str, *values: object) -> None:
        """Say something. Raises OSError if the driver is gone."""
        with self._one_at_a_time:
            self._socket.sendall(_frame(word, values))

    def emit(self, event: Event) -> None:
        """Send an event; nothing happens if the driver is gone."""
        with suppress(OSError):
            self.send(EVENT, type(event).__name__, event)

    def receive(self) -> Message:
        """Wait for the next message. Raises EOFError if the driver is gone."""
        while not self._heard.messages:
            try:
                content = self._socket.recv(2**20)
            except OSError:
                content = b""
            if not content:
                raise EOFError
            self._heard.add(content)
        return self._heard.messages.popleft()


class Hub:
    """The driver's end, of one world. One thread hears, and any may tell."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._told: list[bytes] = []
        """Frames for all ranks, also for those that have not greeted yet."""
        self._peers: dict[int, _Peer] = {}
        """Connections of the ranks that have greeted, by rank."""

    def hear(self, timeout: float) -> list[tuple[int, Message]]:
        """Return what ranks have said, in the order of each; after `timeout` seconds perhaps nothing."""
        heard: list[tuple[int, Message]] = []
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            else:
                heard += self._take(key.data)
        return heard

    def tell(self, rank: int, word: str, *values: object) -> None:
        """Say something to a rank that has greeted; one that is gone hears nothing."""
        with self._lock, suppress(OSError):
            if peer := self._peers.get(rank):
                peer.socket.sendall(_frame(word, values))

    def tell_all(self, word: str, *values: object) -> None:
        """Say something to all ranks, also to those that are still to come, in the same order."""
        with self._lock:
            self._told.append(_frame(word, values))
            for peer in self._peers.values():
                with suppress(OSError):
                    peer.socket.sendall(self._told[-1])

    def knows(self, rank: int) -> bool:
        """Whether a rank is connected."""
        return rank in self._peers

    def close(self) -> None:
        """Hang up on all. May be called twice."""
        for key in list((self._selector.get_map() or {}).values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        self._peers.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, _Peer(connection))

    def _take(self, peer: _Peer) -> list[tuple[int, Message]]:
        """Read what a peer has sent: messages, once it has greeted."""
        try:
            content = peer.socket.recv(2**20)
            if content:
                peer.frames.add(content, GREETING_BYTES if peer.rank is None else None)
        except (OSError, ValueError):
            content = b""
        messages = peer.frames.messages
        if peer.rank is None and messages and not self._greet(peer, messages.popleft()):
            content = b""
        heard: list[tuple[int, Message]] = []
        if peer.rank is not None:
            heard = [(peer.rank, message) for message in messages]
            messages.clear()
        if not content:
            self._selector.unregister(peer.socket)
            peer.socket.close()
            if peer.rank is not None:
                with self._lock:
                    del self._peers[peer.rank]
                heard.append((peer.rank, (ENDED, ())))
        return heard

    def _greet(self, peer: _Peer, message: Message) -> bool:
        """Whether this is one of the ranks, and the first that says to be it."""
        match message:
            case ("hello", (str(token), int(rank))):
                if hmac.compare_digest(token, self.token) and rank not in self._peers:
                    peer.rank = rank
                    with self._lock, suppress(OSError):
                        self._peers[rank] = peer
                        peer.socket.sendall(b"".join(self._told))
                    return True
        return False


def event_of(name: str, fields: dict[str, Any]) -> Event:
    """Return an event that was sent. Raises ValueError if it is not a valid one."""
    if name not in EVENTS:
        raise ValueError(f"there are no events {name!r}")
    return msgspec.convert(fields, EVENTS[name])


class _Peer:
    """A connection that somebody has made to the hub."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.frames = connection, _Frames()
        self.rank: int | None = None
        """Which one it is, once it has greeted."""


class _Frames:
    """Messages out of bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.messages: deque[Message] = deque()

    def add(self, content: bytes, most: int | None = None) -> None:
        """Raises ValueError for bytes that are not a message, or of one longer than `most`."""
        self._buffer += content
        while len(self._buffer) >= _LENGTH:
            size = int.from_bytes(self._buffer[:_LENGTH])
            if most is not None and size > most:
                raise ValueError("too long")
            if len(self._buffer) < _LENGTH + size:
                return
            frame = bytes(self._buffer[_LENGTH : _LENGTH + size])
            del self._buffer[: _LENGTH + size]
            self.messages.append(msgspec.msgpack.decode(frame, type=tuple[str, tuple[Any, ...]]))


def _frame(word: str, values: tuple[Any, ...]) -> bytes:
    content = msgspec.msgpack.encode((word, values))
    return len(content).to_bytes(_LENGTH) + content
