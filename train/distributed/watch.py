"""Ranks watch each other, so that one that is lost is named and ends all, also where a collective would wait on.

A collective of NCCL does not notice that a process has died; its watchdog aborts this process after the timeout, before
Python can say why. So every rank keeps a connection to the first one. It is closed when a process dies, a sign of life
goes through it every second, and a rank that fails says why before it ends. The first rank tells all others.

A thread gives the signs of life, so that a step, a compilation or a checkpoint may take as long as it takes.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from pipeline.foundation.exit_codes import EXIT_FAILED
from pipeline.foundation.progress import say

BEAT = 1.0  # seconds
GRACE = 5.0  # seconds that a process has to end by itself; whoever started the ranks blames the one that died first
PATIENCE = 20.0  # seconds that a connection or a message may take; on a busy machine a second is soon over
LISTENING = 2.0  # seconds that last words have to be heard
KEY = "r2o/watch"
LONGEST = 1 << 14  # characters of a message


@dataclass(frozen=True)
class Loss:
    """What a rank that is gone leaves behind: the exit code for the others, and in words what happened."""

    code: int
    text: str


class _Line:
    """A connection over which one JSON list a line is exchanged."""

    def __init__(self, connection: socket.socket, rank: int | None) -> None:
        self.connection, self.rank = connection, rank
        self.heard_at = time.monotonic()
        self._rest = b""
        connection.settimeout(PATIENCE)

    def send(self, *message: Any) -> None:
        """Send a message; whether the other side is still there, reading tells."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> list[list[Any]] | None:
        """The messages that have come; None where the other side has closed, or is none of ours."""
        try:
            data = self.connection.recv(LONGEST)
            *lines, self._rest = (self._rest + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError):
            return None
        if not data or len(self._rest) > LONGEST or not all(isinstance(one, list) and one for one in messages):
            return None
        self.heard_at = time.monotonic()
        return messages


class RankWatch:
    """This rank's side. It runs from the start until `close`.

    Args:
        store: where the ranks meet. address: this job's, as the other ranks reach the first one.
        seconds: without a sign of life for so long a rank is lost.
        leave: ends the process with an exit code.
    """

    def __init__(
        self, rank: int, size: int, store: Store, *, address: tuple[str, int], seconds: float,
        leave: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.rank, self.size, self._seconds = rank, size, seconds
        self._leave = leave or leave_now
        self._loss: Loss | None = None
        self._lost, self._closing = threading.Event(), threading.Event()
        self._last_words: list[Any] = ["done"]
        self._fault: Callable[[], str | None] = lambda: None
        self._lines = selectors.DefaultSelector()
        self._wakes, self._waking = socket.socketpair()
        self._lines.register(self._waking, selectors.EVENT_READ)
        self._server: socket.socket | None = None
        if rank == 0:
            self._open(store, address)
        else:
            self._connect(store, address)
        os.register_at_fork(after_in_child=self._forget)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def look_at(self, fault: Callable[[], str | None]) -> None:
        """Ask `fault` once a second: what is wrong with the collectives of this rank, None where nothing is."""
        self._fault = fault

    def loss(self, *, within: float) -> Loss | None:
        """Which rank was lost, where that is known or becomes known in so many seconds."""
        self._lost.wait(within)
        return self._loss

    def close(self, loss: Loss | None = None) -> None:
        """RankWatch no longer: all is done, or this rank ends and tells the others of it."""
        if loss is not None:
            self._last_words = ["ends", loss.code, loss.text[: LONGEST // 8]]
        self._closing.set()
        with suppress(OSError):
            self._wakes.send(b"1")
        self._thread.join(GRACE)

    def _open(self, store: Store, address: tuple[str, int]) -> None:
        """Listen, and leave in the store where. What cannot name the token of this start is not let in."""
        self._token, here = secrets.token_hex(16), address[0]
        with suppress(OSError):
            family, kind, _, _, place = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:  # sends nothing
                probe.connect(place)
                here = probe.getsockname()[0]
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=max(self.size, 16))
        self._lines.register(self._server, selectors.EVENT_READ)
        store.set(KEY, json.dumps([self._token, self._server.getsockname()[1], here]))

    def _connect(self, store: Store, address: tuple[str, int]) -> None:
        """Reach the first rank where the ranks meet, or at the address that it saw itself have there."""
        token, port, seen = json.loads(store.get(KEY))
        for host in (address[0], seen):
            with suppress(OSError):
                line = _Line(socket.create_connection((host, port), PATIENCE), 0)
                line.send("hello", token, self.rank)
                self._lines.register(line.connection, selectors.EVENT_READ, line)
                return
        say(f"r2o: rank {self.rank} cannot reach port {port} of {address[0]}; where a rank is lost, none names it")

    def _run(self) -> None:
        next_beat, lost_at = time.monotonic(), None
        while not self._closing.is_set():
            for key, _ in self._lines.select(BEAT):
                if key.fileobj is self._server:
                    self._let_in()
                elif isinstance(key.data, _Line):
                    self._hear(key.data)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT
                self._send_all("beat")
                self._look(now)
            if self._loss is not None:
                lost_at = lost_at or now
                if now - lost_at >= GRACE:
                    say(f"r2o: rank {self.rank} lost the others: {self._loss.text}")
                    self._leave(self._loss.code)
                    return
        self._say_last_words()

    def _let_in(self) -> None:
        assert self._server is not None
        with suppress(OSError):
            line = _Line(self._server.accept()[0], None)
            self._lines.register(line.connection, selectors.EVENT_READ, line)

    def _hear(self, line: _Line) -> None:
        messages = line.read()
        if messages is None:
            self._drop(line)
            if line.rank is not None:
                self._lose(EXIT_FAILED, f"rank {line.rank} has died, and its own message says why")
            return
        for message in messages:
            self._take(line, message)

    def _take(self, line: _Line, message: list[Any]) -> None:
        match message:
            case ["hello", token, int(rank)] if self._server is not None and token == self._token:
                line.rank = rank
                if self._loss is not None:  # before this one was here
                    line.send("lost", self._loss.code, self._loss.text)
            case ["done"] if line.rank is not None:
                self._drop(line)
            case ["ends", int(code), str(text)] if line.rank is not None:
                self._drop(line)
                self._lose(code, f"rank {line.rank} ended: {text}")
            case ["lost", int(code), str(text)] if line.rank == 0:
                self._lose(code, text)

    def silence(self) -> str | None:
        """Which ranks give no sign of life now, in words; None where all do. The first rank hears all, others it."""
        now = time.monotonic()
        silent = [(line.rank, now - line.heard_at) for line in self._others() if line.rank is not None]
        texts = [f"rank {rank} has given no sign of life for {s:.0f} s" for rank, s in sorted(silent) if s > 3 * BEAT]
        return ", ".join(texts) or None

    def _look(self, now: float) -> None:
        """Is a rank silent for too long, or has a collective failed?"""
        for line in self._others():
            if now - line.heard_at < self._seconds:
                continue
            self._drop(line)
            if line.rank is not None:
                text = f"rank {line.rank} hangs, or its node cannot be reached: no sign of life for"
                self._lose(EXIT_FAILED, f"{text} {self._seconds / 60:g} minutes")
        if self._loss is None and (fault := self._fault()) is not None:
            silence = self.silence()
            self._lose(EXIT_FAILED, f"{fault}; {silence}" if silence else fault)

    def _lose(self, code: int, text: str) -> None:
        if self._loss is None:
            self._loss = Loss(code, text)
            self._lost.set()
            if self._server is not None:
                self._send_all("lost", code, text)

    def _others(self) -> list[_Line]:
        found = self._lines.get_map()
        return [key.data for key in list(found.values()) if isinstance(key.data, _Line)] if found else []

    def _send_all(self, *message: Any) -> None:
        for line in self._others():
            if line.rank is not None:
                line.send(*message)

    def _drop(self, line: _Line) -> None:
        self._lines.unregister(line.connection)
        line.connection.close()

    def _say_last_words(self) -> None:
        """Of the first rank to all, of another one to the first; then wait until they are heard, a moment at most.

        A connection that is closed with something unread is torn down, and what was just sent may be lost with it.
        """
        self._send_all(*self._last_words)
        deadline = time.monotonic() + LISTENING
        for line in self._others():
            with suppress(OSError):
                line.connection.shutdown(socket.SHUT_WR)
        for line in self._others():
            while (left := deadline - time.monotonic()) > 0:
                line.connection.settimeout(left)
                if line.read() is None:
                    break
        self._forget()

    def _forget(self) -> None:
        """Close what is open; also in a forked process, which would keep this one's connections open after its end."""
        for line in self._others():
            line.connection.close()
        for one in (self._server, self._wakes, self._waking, self._lines):
            if one is not None:
                one.close()


def leave_now(code: int) -> None:
    """End this process where it is, with what it has said."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
