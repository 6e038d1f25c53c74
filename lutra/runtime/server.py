# SPDX-License-Identifier: MIT
"""llama-server as a child process: started, told when it is ready, and ended with us."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator

from gguf_tools.children import child
from gguf_tools.errors import LutraError
from lutra.runtime.paths import tool_path
from lutra.runtime.tools import ending, failure

_LISTENING = re.compile(r"listening on (\w+://\S+)")
_TAIL = 200  # lines of its log, among which the reason is when it fails
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def running(
    arguments: list[str], key: str | None, on_log: Callable[[str], object]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """llama-server with ``arguments``, as soon as it answers: its address, and what to wait with for its end.

    Every line of its log goes to ``on_log``. Clients must send ``key``, if there is one. It ends with the
    context, and with this process however that ends (on Linux). Raises LutraError when it cannot start, and
    from the wait when it ends by itself.
    """
    environment = {"LLAMA_API_KEY": key} if key else {}  # a command line can be read by everybody
    command = [str(tool_path("llama-server")), *arguments]
    with child(
        command,
        environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us; what it gets is SIGTERM, once
        preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
    ) as process:
        assert process.stdout is not None
        tail: deque[str] = deque(maxlen=_TAIL)

        def log() -> Iterator[str]:
            for data in process.stdout or ():
                tail.append(line := data.decode("utf-8", "replace").rstrip())
                on_log(line)
                yield line
            code = process.wait()
            reason = failure("\n".join(tail), code) if code >= 0 else ending(code)
            raise LutraError(f"llama-server: {reason}")

        lines = log()

        def wait() -> None:
            for _ in lines:
                pass

        yield next(found[1] for line in lines if (found := _LISTENING.search(line))), wait


def require_port(host: str, port: int) -> None:
    """Raise LutraError when nobody can listen at ``port`` of ``host``: that takes no model to know."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} is in use; choose another one with --port, or any with --port 0"
        elif error.errno == errno.EACCES:
            reason = f"port {port} is for root only; choose one from 1024 on with --port"
        else:
            reason = f"{host}: no address of this machine ({error.strerror}); see --host"
        raise LutraError(reason) from None


def _die_with(parent: int) -> Callable[[], None]:
    """What a child has to do to end when ``parent`` does, even if that is killed."""
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was faster
            os._exit(1)

    return arm
