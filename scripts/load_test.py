#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Loads ``lutra serve`` on this machine as careless and hostile clients do, and looks for what it loses.

scripts/load_test.py tiny-chat-cb4.gguf                     # 10,000 requests of 8 clients at once
scripts/load_test.py tiny-chat-cb4.gguf --requests 400

Answers whole and streamed in each protocol, slow readers, readers that leave in the middle of a stream,
requests that are malformed, too large, or end early. Fails when a sound request is not answered, a bad one
is answered with success, the server dies, its memory, files or threads grow, or it does not end on SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

QUESTION = "What is the capital of France?"
CHAT = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 16}
LONG = CHAT | {"ignore_eos": True, "max_tokens": 200, "stream": True}
STREAM = CHAT | {"stream": True}
SLOW = LONG | {"max_tokens": 50}
WARM = 0.1  # of the requests, after which the server has what it needs
GROWTH = 24 << 20  # bytes of memory that may come on top of that: what an allocator keeps
CACHE = 16  # MiB that llama-server may keep of conversations: soon full
TIMEOUT = 60  # seconds


class Failure(Exception):
    """What a client sees that should not be."""


class Connection:
    """One HTTP connection, with all that can be done wrong on it."""

    def __init__(self, port: int, receive: int = 0) -> None:
        self._socket = socket.socket()
        if receive:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(("127.0.0.1", port))

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Close so that the server gets an error (RST), not an end."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def send(self, path: str, body: object, length: int | None = None, method: str = "POST") -> None:
        """Send a request; ``body`` as JSON, bytes as they are; ``length`` is what the header says of it."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(data) if length is None else length}\r\n\r\n"
        )
        self.raw(head.encode() + data)

    def raw(self, data: bytes) -> None:
        """Send bytes, as far as the server takes them."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has answered, and closed
            self._socket.sendall(data)

    def read(self, size: int = 65536) -> bytes:
        """Some of the answer; nothing at its end."""
        try:
            return self._socket.recv(size)
        except ConnectionResetError:
            return b""

    def answer(self, pause: float = 0, size: int = 65536) -> tuple[int, bytes]:
        """Status (0: closed without a word) and all that follows, read with a pause before each part."""
        whole = b""
        while data := self.read(size):
            whole += data
            time.sleep(pause)
        found = re.match(rb"HTTP/1\.1 (\d+)", whole)
        return int(found[1]) if found else 0, whole


# ---- what clients do -------------------------------------------------------------------------


def whole(port: int, path: str, body: object) -> None:
    """A sound request and its answer."""
    with Connection(port) as connection:
        connection.send(path, body)
        status, text = connection.answer()
    if status != 200 or b"Paris" not in text:
        raise Failure(f"{path}: {status} {text[-300:]!r}")


def stream(port: int, path: str, body: object, last: bytes, pause: float = 0, size: int = 65536) -> None:
    """A sound request whose answer is streamed to its end."""
    with Connection(port, receive=4096 if pause else 0) as connection:
        connection.send(path, body)
        status, text = connection.answer(pause, size)
    if status != 200 or last not in text:
        raise Failure(f"{path}, streamed: {status} {text[-300:]!r}")


def leave(port: int, how: str) -> None:
    """Leave in the middle of a stream."""
    with Connection(port) as connection:
        connection.send("/v1/chat/completions", LONG)
        if b"HTTP/1.1 200" not in connection.read(200):
            raise Failure("a stream did not begin")
        if how == "reset":
            connection.reset()


def refused(port: int, path: str, body: object, *statuses: int, **options) -> None:
    """A bad request, which has to be refused."""
    with Connection(port) as connection:
        connection.send(path, body, **options)
        status, text = connection.answer()
    if status not in statuses:
        raise Failure(f"{path}: {status} instead of {statuses}: {text[-300:]!r}")


def broken(port: int, data: bytes) -> None:
    """Something that is no request, or the beginning of one; then the end."""
    with Connection(port) as connection:
        connection.raw(data)


def oversized(port: int) -> None:
    """A body of 200 MB is announced, and 1 MB of it sent."""
    with Connection(port) as connection:
        connection.send("/v1/chat/completions", b"x" * 1_000_000, length=200_000_000)
        connection.reset()


CHATS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
INPUT = {"input": QUESTION, "temperature": 0, "model": "any"}
WORDS = {"messages": [{"role": "user", "content": "word " * 5000}]}
BAD_BODIES: tuple[object, ...] = (
    b"{", b"", b"\xff\xfe", b"[" * 100_000, [], {}, {"messages": 1}, {"messages": [{"role": 5}]},
    {"messages": [{"role": "user"}]}, CHAT | {"temperature": "hot"}, CHAT | {"grammar": "root ::= ("},
)  # fmt: skip
BROKEN = (
    b"\0" * 1000, b"GET / HTTP/1.1\r\n", b"G" * 20_000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + b"\0" * 200,
    b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 500\r\n\r\n{",
)  # fmt: skip

Client = Callable[[int, random.Random], None]
CLIENTS: dict[str, tuple[int, Client]] = {  # how often, and what it does
    "answers": (6, lambda port, _: whole(port, CHATS, CHAT)),
    "messages": (2, lambda port, _: whole(port, MESSAGES, CHAT)),
    "responses": (2, lambda port, _: whole(port, RESPONSES, INPUT)),
    "streams": (6, lambda port, _: stream(port, CHATS, STREAM, b"[DONE]")),
    "streams of messages": (2, lambda port, _: stream(port, MESSAGES, STREAM, b"message_stop")),
    "slow readers": (1, lambda port, _: stream(port, CHATS, SLOW, b"[DONE]", 0.01, 512)),
    "readers that leave": (3, lambda port, rng: leave(port, rng.choice(["close", "reset"]))),
    "malformed": (3, lambda port, rng: refused(port, CHATS, rng.choice(BAD_BODIES), 400, 500)),
    "too long for the context": (1, lambda port, _: refused(port, CHATS, WORDS, 400)),
    "no such thing": (1, lambda port, rng: refused(port, rng.choice(["/no", "/v1"]), {}, 404)),
    "broken off": (2, lambda port, rng: broken(port, rng.choice(BROKEN))),
    "too large": (1, lambda port, _: oversized(port)),
}


# ---- the server ------------------------------------------------------------------------------


class Server:
    """``lutra serve`` and what its llama-server uses."""

    def __init__(self, file: Path, conversations: int) -> None:
        options = ["--port", 0, "--parallel", conversations, "--threads", 1, "--", "--cache-ram", CACHE]
        command = map(str, [sys.executable, "-m", "lutra", "serve", file, *options])
        self.process = subprocess.Popen(
            [*command], text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # what is kept for each thread would look like a leak
        )  # fmt: skip
        assert self.process.stdout
        text = "".join(itertools.takewhile(lambda line: not line.startswith("Ctrl-C"), self.process.stdout))
        found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
        if not found:
            raise Failure("the server does not start; run 'lutra serve' with this file")
        self.port = int(found[1])
        pid = self.process.pid
        self._of_child = Path("/proc") / Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def usage(self) -> dict[str, int]:
        """Memory in bytes, open files, threads."""
        status = (self._of_child / "status").read_text()
        fields = {
            name: int(value) for name, value in re.findall(r"^(RssAnon|Threads):\s+(\d+)", status, re.M)
        }
        files = sum(1 for _ in (self._of_child / "fd").iterdir())
        return {"memory": fields["RssAnon"] * 1024, "files": files, "threads": fields["Threads"]}

    def settled(self) -> dict[str, int]:
        """The usage when nothing is asked any more: the least of a few seconds."""
        seen = []
        for _ in range(6):
            time.sleep(0.5)
            seen.append(self.usage())
        return {name: min(usage[name] for usage in seen) for name in seen[0]}

    def stop(self) -> float:
        """End it, with a stream under way; returns the seconds that took."""
        with Connection(self.port) as connection:
            connection.send(CHATS, LONG)
            connection.read(100)
            started = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(TIMEOUT)
        if code:
            raise Failure(f"the server ended with code {code}")
        if self._of_child.exists():
            raise Failure("llama-server is still there")
        return time.monotonic() - started


def load(server: Server, requests: range, clients: int) -> tuple[Counter[str], list[float], list[str]]:
    """Send the requests; what was sent, the seconds that plain answers took, and what went wrong."""
    kinds = [kind for kind, (often, _) in CLIENTS.items() for _ in range(often)]
    done: Counter[str] = Counter()
    seconds: list[float] = []
    failures: list[str] = []
    numbers = iter(requests)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None or len(failures) > 20:
                return
            rng = random.Random(number)
            kind = rng.choice(kinds)
            started = time.monotonic()
            try:
                CLIENTS[kind][1](server.port, rng)
            except (Failure, OSError) as error:
                failures.append(f"request {number}, {kind}: {error}")
            done[kind] += 1
            if kind == "answers":
                seconds.append(time.monotonic() - started)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done, sorted(seconds), failures


def main() -> int:
    """The exit code: 0 when nothing was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a GGUF of tiny-chat")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="default: 10,000")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="at once (default: 8)")
    args = parser.parse_args()
    server = Server(args.file, args.clients)
    try:
        warm = int(args.requests * WARM)
        load(server, range(warm), args.clients)
        before = server.settled()
        started = time.monotonic()
        done, seconds, failures = load(server, range(warm, args.requests), args.clients)
        took = time.monotonic() - started
        peak = server.usage()
        after = server.settled()
        stopped = server.stop()
    finally:
        server.process.kill()
        server.process.wait()
    for kind, number in done.most_common():
        print(f"{number:7,}  {kind}")
    print(f"{sum(done.values()):7,}  requests of {args.clients} clients in {took:.0f} s")
    middle, late = (seconds[int(len(seconds) * part)] for part in (0.5, 0.99))
    print(f"answers of 8 tokens: {1000 * middle:.0f} ms, 99 % within {1000 * late:.0f} ms")
    for name, use in (("before", before), ("at the end", peak), ("then idle", after)):
        memory = f"{use['memory'] / 2**20:.1f} MiB"
        print(f"{name + ':':<12}{memory}, {use['files']} files, {use['threads']} threads")
    print(f"ended {stopped:.1f} s after SIGTERM")
    if after["memory"] > before["memory"] + GROWTH:
        failures.append("memory grows")
    failures += [f"{name} grow" for name in ("files", "threads") if after[name] > before[name]]
    if stopped > 5:
        failures.append("the end takes too long")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
