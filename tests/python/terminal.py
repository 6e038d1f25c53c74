# SPDX-License-Identifier: MIT
"""``lutra`` at a terminal of its own: what a person types goes in, what is shown comes out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time

from cli_runner import command, environment

READY = "\x1b[?2004h"  # a terminal that edits is told to mark what is pasted
UP, LEFT, TAB, ENTER, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\t", "\r", "\x03", "\x04"


def pasted(text):
    """What a terminal sends when ``text`` is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """A program and the screen that it writes to."""

    def __init__(self, *args, columns=80, env=None):
        self._keyboard, self._terminal = pty.openpty()
        self.resize(columns)
        self._before = termios.tcgetattr(self._terminal)
        self._shown = bytearray()
        self._seen = 0
        self.process = subprocess.Popen(
            command(*args),
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=environment({"TERM": "xterm", "NO_COLOR": ""} | (env or {})),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)
        self._reader.join()
        os.close(self._keyboard)

    def _read(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._keyboard, 4096):
                self._shown += data

    def resize(self, columns):
        """The window becomes so wide; the program is told by the system."""
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text):
        """Press keys."""
        os.write(self._keyboard, text.encode(errors="surrogateescape"))

    def until(self, text):
        """What is shown after what was seen last, up to ``text``, with which what was seen ends."""
        deadline = time.monotonic() + 60
        while (at := self._shown.find(text.encode(), self._seen)) < 0:
            assert time.monotonic() < deadline, bytes(self._shown[self._seen :])
            assert self.process.poll() is None or self._reader.is_alive(), bytes(self._shown)
            time.sleep(0.005)
        part = self._shown[self._seen : at + len(text.encode())]
        self._seen = at + len(text.encode())
        return part.decode(errors="replace")

    def say(self, text):
        """Type a line and return what is shown till the next can be typed, without what moves the cursor."""
        self.type(text + ENTER)
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.until(READY)).replace("\r", "")

    def end(self):
        """The exit code, once the program has ended. Asserts that the terminal is as it was before."""
        code = self.process.wait(60)
        assert termios.tcgetattr(self._terminal) == self._before
        return code

    def interrupt(self):
        """Ctrl-C while an answer is written."""
        os.kill(self.process.pid, signal.SIGINT)
