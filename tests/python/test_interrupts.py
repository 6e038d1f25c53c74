# SPDX-License-Identifier: MIT
"""Signals at every moment: what a conversion leaves behind is nothing, or named and of use."""

from __future__ import annotations

import contextlib
import dis
import signal
import sys
import threading

import numpy as np
import pytest
from gguf_samples import METADATA

from gguf_tools import children, interrupts, writer
from gguf_tools.errors import LutraError
from gguf_tools.interrupts import ignore_signals, raise_signals, shielded
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.conversion import workdir
from lutra.conversion.workdir import WorkDirectory

WEIGHTS = np.arange(64, dtype=np.float32)
SPEC = TensorSpec("w", 0, WEIGHTS.shape, WEIGHTS.nbytes)


@pytest.fixture(autouse=True)
def signals():
    """The handlers of the command ``lutra``, for one test; also where a test run ignores SIGINT."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in interrupts.SIGNALS}
    raise_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Moments:
    """Calls ``what`` at the ``n``-th moment at which Python would notice a signal in ``files``.

    That is where a function begins, and behind calls and jumps back.
    """

    def __init__(self, n, what, files):
        self.seen = 0
        self._n, self._what, self._files = n, what, files
        self._before = {}  # instruction by frame, which must not be kept alive

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = True
        name = dis.opname[frame.f_code.co_code[max(frame.f_lasti, 0)]]
        if event == "call":
            self._before[id(frame)] = ""
        if event == "opcode":
            before, self._before[id(frame)] = self._before[id(frame)], name
        if event == "call" or (event == "opcode" and before.startswith(("CALL", "JUMP_BACK", "JUMP_ABS"))):
            self.seen += 1
            if self.seen == self._n:
                self._what()
        return self


def at_every_moment(what, run, modules):
    """Yield after ``run`` with ``what`` done at its first moment, at its second, ..., to the last.

    ``run`` may end with a signal's exception, or an error.
    """
    files = {module.__file__ for module in modules} | {__file__, contextlib.__file__}
    n = 1
    while True:
        moments = Moments(n, what, files)
        sys.settrace(moments)
        try:
            run()
        except (KeyboardInterrupt, SystemExit, LutraError):
            pass
        finally:
            sys.settrace(None)
        if moments.seen < n:
            break
        yield n
        n += 1
    assert n > 30


def convert(output, failure=None, finished=1):
    """All that a conversion does on the disk; fails with ``failure`` before the file is written."""
    with WorkDirectory(output, {"seed": 0}) as work:
        for i in range(finished):
            work.save(f"w{i}", [WEIGHTS], 0.0)
        if failure:
            raise failure
        with GGUFWriter(output, METADATA, [SPEC]) as file:
            file.write(work.load("w0")[0])


@pytest.mark.parametrize(
    ("number", "failure", "finished"),
    [
        (signal.SIGINT, None, 1),
        (signal.SIGTERM, None, 1),
        (signal.SIGINT, KeyboardInterrupt(), 1),  # a second one, while the first is dealt with
        (signal.SIGINT, LutraError("no"), 0),
    ],
)
def test_a_signal_at_any_moment_leaves_nothing_or_names_it(
    number, failure, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(workdir.os, "fsync", lambda descriptor: None)  # a thousand conversions
    output = tmp_path / "out.gguf"
    convert(output)
    expected = output.read_bytes()
    output.unlink()
    kept = 0

    def run():
        convert(output, failure, finished)

    for n in at_every_moment(lambda: signal.raise_signal(number), run, (interrupts, workdir, writer)):
        left = {path.name for path in tmp_path.iterdir()} - {output.name}
        said = capsys.readouterr().err
        if left:
            assert left == {".out.gguf.lutra-work"}, n
            assert (tmp_path / left.pop() / "w0.tensor").exists(), n
            assert "the same command goes on from there" in said, n
            assert f"rm -r {tmp_path}/.out.gguf.lutra-work" in said, n
            kept += 1
        else:
            assert said == ""
        convert(output)
        assert output.read_bytes() == expected
        assert [path.name for path in tmp_path.iterdir()] == [output.name]
        output.unlink()
        capsys.readouterr()
    assert bool(kept) == bool(finished)


def test_a_signal_at_any_moment_leaves_no_child(monkeypatch):
    started = []
    popen = children.subprocess.Popen
    monkeypatch.setattr(
        children.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )

    def run():
        with children.child(["sleep", "60"]):
            pass

    for _ in at_every_moment(lambda: signal.raise_signal(signal.SIGINT), run, (interrupts, children)):
        assert all(child.returncode is not None for child in started)
        started.clear()


def test_a_shielded_function_is_left_whole():
    done = []

    @shielded
    def inner():
        signal.raise_signal(signal.SIGINT)
        done.append("inner")

    @shielded
    def outer():
        inner()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]
    thread = threading.Thread(target=outer)

    def run_thread():
        thread.start()
        thread.join()

    with pytest.raises(KeyboardInterrupt):  # here, not there
        run_thread()
    thread.join()
    assert done == ["inner", "outer"] * 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_kill_ends_the_program_with_its_code(number, code):
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(number)
    assert ended.value.code == code


def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    raise_signals()
    signal.raise_signal(signal.SIGHUP)
    ignore_signals()
    for number in interrupts.SIGNALS:
        signal.raise_signal(number)


def test_one_conversion_at_a_time(tmp_path):
    with WorkDirectory(tmp_path / "o", {}) as work:
        work.save("w", [WEIGHTS], 0.0)
        with (
            pytest.raises(LutraError, match="another conversion to this output is running"),
            WorkDirectory(tmp_path / "o", {}),
        ):
            pass
        assert "w" in work


def test_a_directory_removed_while_it_is_opened_is_made_anew(tmp_path, monkeypatch):
    """The conversion that had it ended between the two steps of opening it."""
    flock, removals = workdir.fcntl.flock, [True]

    def removing(*args):
        if removals:
            removals.pop()
            (tmp_path / ".o.lutra-work").rmdir()
        flock(*args)

    monkeypatch.setattr(workdir.fcntl, "flock", removing)
    with WorkDirectory(tmp_path / "o", {}) as work:
        assert work.path.is_dir()
        work.save("w", [WEIGHTS], 0.0)
    assert list(tmp_path.iterdir()) == []
