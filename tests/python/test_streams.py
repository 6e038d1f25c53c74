# SPDX-License-Identifier: MIT
"""Standard input, output and error that are closed, full or left: a quiet exit, or one line."""

from __future__ import annotations

import os
import subprocess

import pytest
from cli_runner import command, environment
from gguf_samples import sample_gguf

VERBS = [["--help"], ["--version"], ["convert", "--help"], ["info", "m.gguf"]]


def run(args, directory, unbuffered=False, **options):
    """Run lutra with streams of its own choice; it must end within a minute."""
    env = environment({"PYTHONUNBUFFERED": "1" if unbuffered else ""})
    sample_gguf(directory / "m.gguf")
    return subprocess.run(
        command(*args), cwd=directory, env=env, stderr=subprocess.PIPE, text=True, timeout=60, **options
    )


@pytest.mark.parametrize(("args", "unbuffered"), [(args, False) for args in VERBS] + [(VERBS[3], True)])
def test_a_full_disk_is_one_line(args, unbuffered, tmp_path):
    with open("/dev/full", "w") as full:
        done = run(args, tmp_path, unbuffered, stdout=full)
    assert (done.returncode, done.stderr) == (
        1, "lutra: error: cannot write: No space left on device\n"
    )  # fmt: skip


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize("args", VERBS)
def test_a_reader_that_leaves_is_no_news(args, unbuffered, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(args, tmp_path, stdout=writing, unbuffered=unbuffered)
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode in ((1,) if not unbuffered else (0, 1))  # argparse swallows what it prints itself


@pytest.mark.parametrize("args", VERBS)
@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2)])
def test_streams_that_are_closed(args, closed, tmp_path):
    def close():
        for number in closed:
            os.close(number)

    done = run(args, tmp_path, preexec_fn=close)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_that_nobody_can_read(tmp_path):
    for stream in ("full", "left"):
        reading, writing = os.pipe()
        os.close(reading)
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command("info", "missing.gguf"), cwd=tmp_path, env=environment({"PYTHONUNBUFFERED": ""}),
                stdout=subprocess.PIPE, stderr=full if stream == "full" else writing, timeout=60,
            )  # fmt: skip
        os.close(writing)
        assert (done.returncode, done.stdout) == (1, b"")


def test_nothing_is_written_into_a_file_in_place_of_a_closed_stream(tmp_path):
    """The first file to be opened would get the number of standard output."""
    code = (
        "import os, sys; from lutra.cli import streams; streams.prepare(); print(os.open('x', os.O_RDONLY))"
    )
    (tmp_path / "x").write_text("")
    done = subprocess.run(
        [*command()[:1], "-c", code + "; sys.stderr.write(str(os.open('x', os.O_RDONLY)))"], cwd=tmp_path,
        env=environment(), stderr=subprocess.PIPE, text=True, timeout=60, preexec_fn=lambda: os.close(1),
    )  # fmt: skip
    assert int(done.stderr) > 2
