# SPDX-License-Identifier: MIT
"""A hub of models on this machine: what huggingface_hub asks of one, from directories."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "c" * 40


@dataclass
class Hub:
    """Models by name, with their directories; what was ``asked`` for, and the bytes ``sent`` of each file."""

    models: dict[str, Path]
    url: str = ""
    gated: set[str] = field(default_factory=set)
    breaks_after: int | None = None  # bytes of a file; then the connection is lost, and the hub answers 503
    down: bool = False
    storage: str = ""  # another address of this server, where files are then
    shown: dict[str, set[str]] = field(default_factory=dict)  # tokens by the address they were sent to
    dtypes: dict[str, int] = field(default_factory=dict)  # weights of each type of safetensors
    asked: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)

    def fetched(self) -> set[str]:
        """The files of which bytes were sent."""
        return set(self.sent)


@contextmanager
def serve(models: dict[str, Path]) -> Iterator[Hub]:
    """A hub that has ``models`` until the block ends."""
    hub = Hub(models)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        """Nothing on standard error."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization"):
            self.hub.shown.setdefault(self.headers["Host"], set()).add(token)
        name = path.removeprefix("/api/models/").lstrip("/").partition("/resolve/")[0]
        name = "/".join(name.split("/")[:2])
        if self.hub.down:
            return self._refuse(503, "")
        directory = self.hub.models.get(name)
        if directory is None:
            return self._refuse(401, "RepoNotFound")
        if path.startswith("/api/models/"):
            files = sorted(p for p in directory.rglob("*") if p.is_file())
            siblings = [
                {"rfilename": str(p.relative_to(directory)), "size": p.stat().st_size, "blobId": "0"}
                for p in files
            ]
            parameters = {"parameters": self.hub.dtypes, "total": sum(self.hub.dtypes.values())}
            said = {"_id": "0", "id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}
            said |= {"safetensors": parameters} if self.hub.dtypes else {}
            return self._send(json.dumps({**said, "private": False, "downloads": 0}).encode(), {}, body)
        if name in self.hub.gated and "Authorization" not in self.headers:
            return self._refuse(401, "GatedRepo")
        file = path.partition("/resolve/main/")[2] or path.partition(f"/resolve/{COMMIT}/")[2]
        if not (directory / file).is_file():
            return self._refuse(404, "EntryNotFound")
        content = (directory / file).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.hub.storage and self.hub.storage != f"http://{self.headers['Host']}":
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
            headers["Location"] = f"{self.hub.storage}{self.path}"
            return self._send(b"", headers, body, 302)
        status, start = 200, 0
        if (wanted := self.headers.get("Range")) is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            status, start, size = 206, int(first), len(content)
            content = content[: int(last) + 1] if last else content
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{size}"
        self._send(content[start:], headers, body, status, file)

    def _send(
        self, content: bytes, headers: dict[str, str], body: bool, status: int = 200, file: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        limit = self.hub.breaks_after
        if file and limit is not None and len(content) > limit:
            self.close_connection = self.hub.down = True
            content = content[:limit]
        self.wfile.write(content)
        if file:
            self.hub.sent[file] = self.hub.sent.get(file, 0) + len(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
