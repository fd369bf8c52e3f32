"""Channel between the driver, which hands out work, and its ranks: messages of plain values. Torch-free.

The messages travel over sockets. A rank connects to the driver and first sends a secret token; the driver
disconnects a peer that does not. Messages are msgpack, and this module unpickles nothing. Only
`engine.started_ranks.call_on_ranks` has ranks put pickled bytes into messages: their results, which it
unpickles. Those ranks have sent the token.
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
"""Message on the channel: its kind, and plain values (numbers, texts, bytes, lists, dicts)."""
LOG = "log"
"""Kind of message that carries a log record from a rank, or the lowest wanted log level to the ranks."""
EVENT = "event"
"""Kind of message that carries an event: the name of its class, and its fields."""
ENDED = "ended"
"""Kind of message that `Hub`, in the driver process, creates itself when a rank has disconnected."""

GREETING_BYTES = 1024
"""Size limit, in bytes, of a message from a peer that has not sent the token yet."""
_LENGTH = 8


class Connection:
    """A rank's end of the channel to the driver (the process that hands out work to ranks).

    Several threads may send, and one receives.
    """

    def __init__(self, address: str, token: str, rank: int) -> None:
        """Connect to the driver's `Hub` at `address` (`host:port`), and send the secret token and rank."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        # Messages are small and must arrive at once: do not collect them for a larger packet.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._one_at_a_time = threading.Lock()
        self._heard = _Frames()
        self.send("hello", token, rank)

    def send(self, word: str, *values: object) -> None:
        """Send a message to the driver process. Raises OSError if that process is gone."""
        with self._one_at_a_time:
            self._socket.sendall(_frame(word, values))

    def emit(self, event: Event) -> None:
        """Send an event to the driver process; do nothing if that process is gone."""
        with suppress(OSError):
            self.send(EVENT, type(event).__name__, event)

    def receive(self) -> Message:
        """Wait for the driver process's next message and return it. Raises EOFError if that process ended."""
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
    """The driver's end of the channel to its ranks (the driver is the process that hands out work).

    One thread receives, and any thread may send.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)  # 0: any free port
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._told: list[bytes] = []
        """Encoded messages that went to all ranks so far; a rank that connects later gets them first."""
        self._peers: dict[int, _Peer] = {}
        """Mapping from rank to connection, for ranks that are connected and have sent the secret token."""

    def hear(self, timeout: float) -> list[tuple[int, Message]]:
        """Return the messages that have come, as pairs (rank that sent it, message).

        The messages of each rank are in the order in which it sent them. Waits for the first message for at
        most `timeout` seconds; the list may be empty.
        """
        heard: list[tuple[int, Message]] = []
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            else:
                heard += self._take(key.data)
        return heard

    def send_to(self, rank: int, word: str, *values: object) -> None:
        """Send a message to a rank; do nothing if it is not connected."""
        with self._lock, suppress(OSError):
            if peer := self._peers.get(rank):
                peer.socket.sendall(_frame(word, values))

    def tell_all(self, word: str, *values: object) -> None:
        """Send a message to all ranks, including those that connect later.

        All ranks get such messages in the same sequence.
        """
        with self._lock:
            self._told.append(_frame(word, values))
            for peer in self._peers.values():
                with suppress(OSError):
                    peer.socket.sendall(self._told[-1])

    def knows(self, rank: int) -> bool:
        """Return whether a rank is connected now."""
        return rank in self._peers

    def close(self) -> None:
        """Close all connections, and stop accepting new ones. May be called twice."""
        for key in list((self._selector.get_map() or {}).values()):  # None after an earlier `close`
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        self._peers.clear()

    def _accept(self) -> None:
        with suppress(OSError):  # the peer may have hung up already
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, _Peer(connection))

    def _take(self, peer: _Peer) -> list[tuple[int, Message]]:
        """Read what a peer has sent, and return the complete messages; none before it has sent the token.

        A peer that hangs up or sends something invalid is disconnected. If that peer was a rank, a last
        message `ENDED` is added to those returned.
        """
        try:
            content = peer.socket.recv(2**20)
            if content:
                peer.frames.add(content, GREETING_BYTES if peer.rank is None else None)
        except (OSError, ValueError):
            content = b""
        messages = peer.frames.messages
        # The first message must be a valid greeting; those that follow it count from then on.
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
        """Accept a peer as a rank if its first message has the secret token; return whether it was accepted.

        A rank that is connected already is not accepted again.
        """
        match message:
            case ("hello", (str(token), int(rank))):
                if hmac.compare_digest(token, self.token) and rank not in self._peers:
                    peer.rank = rank
                    # Under the lock, so that `tell_all` can neither overtake the earlier messages nor skip
                    # this rank.
                    with self._lock, suppress(OSError):
                        self._peers[rank] = peer
                        peer.socket.sendall(b"".join(self._told))
                    return True
        return False


def event_of(name: str, fields: dict[str, Any]) -> Event:
    """Return the event that a message carries, by its class's name and fields.

    Raises ValueError if it is not a valid event.
    """
    if name not in EVENTS:
        raise ValueError(f"there is no event {name!r}")
    return msgspec.convert(fields, EVENTS[name])


class _Peer:
    """Connection that a `Hub` in the driver process has accepted, from a rank or a stranger."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.frames = connection, _Frames()
        self.rank: int | None = None
        """Rank of the peer; None until it has sent the secret token."""


class _Frames:
    """Parser of message frames: joins the bytes from a socket as they arrive, and splits off messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.messages: deque[Message] = deque()

    def add(self, content: bytes, most: int | None = None) -> None:
        """Add bytes from a socket, and append each message that is now complete to the list `messages`.

        most: largest size of a message in bytes; None: no limit. Raises ValueError if bytes are not a
        message, or if a message is too large.
        """
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
