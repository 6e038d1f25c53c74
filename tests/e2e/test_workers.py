# SPDX-License-Identifier: MIT
"""A model on several machines: workers on loopback give the same text, and one that is lost is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from cli_runner import assert_error, command, environment, lutra, require_built

from gguf_tools.errors import LutraError
from gguf_tools.reader import GGUFFile
from lutra.runtime.model import Model
from lutra.runtime.workers import parse_workers, require_workers

QUESTION = "What is the capital of France?"
ASK = """
import sys
from lutra.runtime import crash
from lutra.runtime.model import Model
crash.arm()
with Model(sys.argv[1], workers=sys.argv[2:], threads=1) as model:
    while True:
        print(model.chat("Tell me about France."), flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def worker(**env):
    """``lutra worker`` on loopback: its address, and the process group."""
    require_built("ggml-rpc-server")
    port = free_port()
    process = subprocess.Popen(
        command("worker", "--port", port, "--threads", 1),
        env=environment(env),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert f"worker on 127.0.0.1:{port}, 1 threads, kernels: " in process.stdout.readline()
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", ["cb4", "cb2"])
def test_two_workers_give_the_same_text(tiny_chat, kind):
    with Model(tiny_chat(kind), threads=1) as model:
        alone = model.chat(QUESTION)
    with worker() as (one, _), worker() as (two, _):
        with Model(tiny_chat(kind), workers=[one, two], threads=1) as model:
            assert model.chat(QUESTION) == alone
        # Workers go on when a program has left.
        done = lutra("chat", tiny_chat(kind), "-p", QUESTION, "--rpc", f"{one},{two}", "--threads", 1)
        assert done.stdout.strip() == alone, done.stderr


def test_workers_have_the_planes_of_the_program(tiny_chat, monkeypatch):
    def logits(planes, workers):
        monkeypatch.setenv("LUTRA_PLANES", planes)
        with Model(tiny_chat("cb4"), workers=workers, threads=1) as model:
            return np.ctypeslib.as_array(model.logits([1, 2, 3]), (3, model.n_vocab)).copy()

    one, two = logits("1", ()), logits("2", ())
    assert not (one == two).all()
    with worker() as (address, _):
        np.testing.assert_array_equal(logits("2", [address]), two)
        np.testing.assert_array_equal(logits("1", [address]), one)


def test_bench_on_a_worker(tiny_chat):
    require_built("llama-bench")
    with worker() as (one, _):
        options = ["-p", 8, "-n", 4, "-r", 1, "-t", 1, "-o", "json"]
        done = lutra("bench", tiny_chat("cb4"), "--rpc", one, *options)
        assert done.returncode == 0, done.stderr
        runs = json.loads(done.stdout)
        assert [run["backends"] for run in runs] == ["RPC", "RPC"]
        assert all(0 < run["n_gpu_layers"] < 9 for run in runs)  # this machine has some of the 9
    gone = lutra("bench", tiny_chat("cb4"), "--rpc", one, *options)
    assert_error(gone, f"worker {one}: nobody listens there")


def test_a_worker_ends_when_it_is_told_to():
    with worker() as (_, process):
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_lost_during_an_answer_is_one_line(tiny_chat, number):
    with worker() as (one, _), worker() as (two, process):
        program = [sys.executable, "-c", ASK, tiny_chat("cb4"), one, two]
        with subprocess.Popen(
            program, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as asking:
            assert asking.stdout.readline()
            os.killpg(process.pid, number)
            _, errors = asking.communicate(timeout=60)
    (line,) = (line for line in errors.splitlines() if not line.startswith("lutra: CB"))
    assert line.startswith(f"lutra: error: worker {two} is lost: ")
    assert "lutra worker" in line
    assert asking.returncode == 1


def test_a_worker_lost_by_a_server_is_one_line(tiny_chat):
    require_built("llama-server")
    with worker() as (one, process):
        program = command("serve", tiny_chat("cb4"), "--port", 0, "--threads", 1, "--rpc", one)
        with subprocess.Popen(
            program, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as serving:
            address = next(line.split()[-1] for line in serving.stdout if "to chat" in line)
            os.killpg(process.pid, signal.SIGKILL)
            body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]}).encode()
            with pytest.raises(OSError, match=r"(?i)closed|reset|without"):
                urllib.request.urlopen(f"{address}/v1/chat/completions", body, timeout=60)
            _, errors = serving.communicate(timeout=60)
    assert errors.splitlines()[-1].startswith(f"lutra: error: llama-server: worker {one} is lost: ")
    assert serving.returncode == 1


def test_a_program_that_is_killed_leaves_its_worker_alive(tiny_chat):
    with worker() as (one, process):
        program = [sys.executable, "-c", ASK, tiny_chat("cb4"), one]
        with subprocess.Popen(program, env=environment(), stdout=subprocess.PIPE) as asking:
            assert asking.stdout.readline()
            asking.kill()
        require_workers([one])
        assert process.poll() is None


def test_a_damaged_library_is_refused_on_a_worker_too(tiny_chat, tmp_path):
    damaged = shutil.copy(tiny_chat("cb4"), tmp_path)
    with GGUFFile(damaged) as file:
        last = file.tensors["blk.7.ffn_up.weight"]
    with open(damaged, "r+b") as file:
        file.seek(last.offset + last.nbytes - 1)
        file.write(b"\x80")
    with worker() as (one, _), pytest.raises(LutraError, match="weight' is damaged"):
        Model(damaged, workers=[one], threads=1)


def test_a_program_that_leaves_before_its_answers_come_leaves_its_worker_alive():
    with worker() as (one, process):
        host, port = one.split(":")
        for _ in range(5):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(b"\x0e" + (24).to_bytes(8, "little") + bytes(24))  # RPC_CMD_HELLO
                assert connection.recv(36, socket.MSG_WAITALL)[8] == 7
                connection.sendall(2000 * (b"\x0f" + bytes(8)))  # RPC_CMD_DEVICE_COUNT
            require_workers([one])
        assert process.poll() is None


def test_a_worker_that_is_not_there(tiny_chat):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(LutraError, match=f"worker {address}: nobody listens there; start it with 'lutra wo"):
        Model(tiny_chat("cb4"), workers=[address])


def test_a_worker_that_serves_another_program(tiny_chat, monkeypatch):
    monkeypatch.setattr("lutra.runtime.workers._PATIENCE", 0.3)
    with (
        worker() as (one, _),
        Model(tiny_chat("cb4"), workers=[one], threads=1),
        pytest.raises(LutraError, match=f"worker {one}: busy; a worker serves one program at a time"),
    ):
        require_workers([one])


def test_a_port_that_is_taken():
    require_built("ggml-rpc-server")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_error(lutra("worker", "--port", port), f"127.0.0.1:{port}: Address already in use; see --host")


# ---- what is no worker ---------------------------------------------------------------------


@contextmanager
def answering(*answers: bytes):
    """Something that listens, and gives these answers to whatever it is sent."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            for answer in answers:
                connection.recv(1 << 16)
                connection.sendall(len(answer).to_bytes(8, "little") + answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (
            [bytes([6, 0, 0, 0, *bytes(24)])],
            "speaks version 6.0 of the protocol, this machine 7.0; install the",
        ),
        (
            [bytes([7, 1, 0, 0, *bytes(24)])],
            "speaks version 7.1 of the protocol, this machine 7.0; install the",
        ),
        ([bytes([7, 0, 0, 0, *bytes(24)])], "does not know codebook types; start it with 'lutra worker' of"),
        ([bytes([7, 0, 0, 0, *bytes(24)]), bytes(8)], "does not know codebook types"),
        ([b"HTTP/1.1"], "what listens there is no worker"),
        ([], "what listens there is no worker"),
    ],
)
def test_what_is_no_worker_of_ours(answers, reason):
    with answering(*answers) as address, pytest.raises(LutraError, match=f"worker {address}: {reason}"):
        require_workers([address])


@pytest.mark.parametrize("text", ["", "a,,b", "a:", ":1", "a:0", "a:65536", "a:b", "[::1]:50052", "a:1,a:1"])
def test_what_is_no_list_of_workers(text):
    with pytest.raises(LutraError):
        parse_workers(text)


def test_a_list_of_workers():
    assert parse_workers("pi2.local, 10.0.0.3:7") == ["pi2.local:50052", "10.0.0.3:7"]
