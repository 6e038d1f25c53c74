# SPDX-License-Identifier: MIT
"""``lutra serve`` for the tests: a server at a free port, and requests."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cli_runner import command, environment

QUESTION = {"role": "user", "content": "What is the capital of France?"}


class Serving:
    """A server that runs: ``process`` is lutra, ``text`` what it printed, ``url`` where it is."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.text = ""
        for line in process.stdout:
            self.text += line
            if line.startswith("Ctrl-C"):
                break
        found = re.search(r"http://\S+", self.text)
        assert found, self.end()
        self.url = found[0]

    def child(self) -> int:
        """The process id of llama-server."""
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Its exit code and what it said on standard error, after a signal."""
        if number:
            self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[1]
        return self.process.returncode, said

    def ask(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and text of an answer; ``body`` is sent as JSON, bytes as they are."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"} | (headers or {})
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextlib.contextmanager
def serving(*args: object, env: dict[str, str] | None = None, **options) -> Iterator[Serving]:
    """``lutra serve`` with ``args`` at a free port, until the context ends."""
    process = subprocess.Popen(
        command("serve", "--port", 0, *args), env=environment(env), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    try:
        yield Serving(process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
