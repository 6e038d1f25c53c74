# SPDX-License-Identifier: MIT
"""``lutra serve``: the protocols, the key, the port; its start and its end, and that of llama-server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from cli_runner import assert_error, lutra, require_built
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import sample_gguf
from serving import QUESTION, serving

from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.writer import GGUFWriter, TensorSpec
from lutra.runtime import context
from lutra.runtime.paths import tool_path


@pytest.fixture(scope="module")
def server(tiny_chat_cb4):
    with serving(tiny_chat_cb4) as server:
        yield server


# ---- protocols ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/chat/completions", {"messages": [QUESTION]}, ("choices", 0, "message", "content")),
        ("/v1/messages", {"messages": [QUESTION], "max_tokens": 50}, ("content", 0, "text")),
        ("/v1/responses", {"input": QUESTION["content"]}, ("output", 0, "content", 0, "text")),
    ],
)
def test_each_protocol_answers(server, path, body, where):
    status, text = server.ask(path, {"model": "any", "temperature": 0} | body)
    assert status == 200, text
    answer = json.loads(text)
    for key in where:
        answer = answer[key]
    assert answer == "The capital of France is Paris."


def test_what_it_prints(server, tiny_chat_cb4):
    assert server.text.startswith("tiny-chat-cb4.gguf: ")
    assert "4 conversations at once with 512 tokens each\n(2,048 in all: 8.0 MiB of " in server.text
    for line in (
        f"OPENAI_BASE_URL={server.url}/v1 OPENAI_API_KEY=none\n",
        f"ANTHROPIC_BASE_URL={server.url} ANTHROPIC_AUTH_TOKEN=none\n",
        f"aider --model openai/tiny-chat-cb4 --openai-api-base {server.url}/v1 --openai-api-key none\n",
    ):
        assert line in server.text
    models = json.loads(server.ask("/v1/models")[1])["data"]
    assert [model["id"] for model in models] == ["tiny-chat-cb4"]
    slots = json.loads(server.ask("/slots")[1])
    assert [slot["n_ctx"] for slot in slots] == [512] * 4


def test_other_sites_in_the_browser_may_not_read_an_answer(server):
    import urllib.request

    for origin, allowed in (("https://elsewhere.example", None), ("http://localhost:3000",) * 2):
        request = urllib.request.Request(f"{server.url}/v1/models", headers={"Origin": origin})
        with urllib.request.urlopen(request) as answer:
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed


# ---- key and address ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_key_is_asked_for_and_shown_to_nobody(tiny_chat_cb4, way):
    args, env = (["--api-key", "s3cret"], None) if way == "option" else ([], {"LLAMA_API_KEY": "s3cret"})
    with serving(tiny_chat_cb4, *args, env=env) as server:
        body = {"messages": [QUESTION], "max_tokens": 1}
        assert server.ask("/v1/chat/completions", body)[0] == 401
        assert server.ask("/v1/chat/completions", body, {"Authorization": "Bearer wrong"})[0] == 401
        assert server.ask("/v1/chat/completions", body, {"Authorization": "Bearer s3cret"})[0] == 200
        assert server.ask("/v1/messages", body, {"x-api-key": "s3cret"})[0] == 200
        status, page = server.ask("/")  # it asks for the key itself
        assert status == 200
        assert "<title>" in page
        assert b"s3cret" not in Path(f"/proc/{server.child()}/cmdline").read_bytes()
        assert "s3cret" not in server.text
        assert "OPENAI_API_KEY=KEY" in server.text


def test_a_key_of_nothing_is_refused(tmp_path):
    for key in ("", " ", "a\nb", " a"):
        assert_error(lutra("serve", tmp_path / "m.gguf", "--api-key", key), "--api-key")


def test_open_to_everybody_is_a_warning(tiny_chat_cb4):
    with serving(tiny_chat_cb4, "--host", "0.0.0.0") as server:
        assert "http://0.0.0.0" not in server.text
        code, said = server.end(signal.SIGTERM)
    assert code == 0
    assert said.startswith("lutra: warning: everybody who reaches this machine can use the model; ")
    assert "--api-key" in said
    with serving(tiny_chat_cb4, "--host", "0.0.0.0", "--api-key", "k") as server:
        assert "warning" not in server.end(signal.SIGTERM)[1]


def test_a_port_or_an_address_that_cannot_be_had(tiny_chat_cb4):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_error(lutra("serve", tiny_chat_cb4, "--port", port), f"port {port} is in use", "--port 0")
    assert_error(
        lutra("serve", tiny_chat_cb4, "--host", "192.0.2.1"),
        "192.0.2.1: no address of this machine",
        "--host",
    )
    assert_error(
        lutra("serve", tiny_chat_cb4, "--host", "no.invalid"), "no.invalid: no address of this machine"
    )
    assert_error(lutra("serve", tiny_chat_cb4, "--port", 65536), "'65536' is no port")


# ---- start and end ------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_and_is_success(tiny_chat_cb4, number, tmp_path):
    def obey_ctrl_c():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it

    with serving(tiny_chat_cb4, env={"TMPDIR": str(tmp_path)}, preexec_fn=obey_ctrl_c) as server:
        child = server.child()
        assert list(tmp_path.iterdir())
        assert server.end(number) == (0, "lutra: stopped\n")
        assert not alive(child)
    assert not list(tmp_path.iterdir())


def test_a_signal_in_the_middle_of_an_answer(tiny_chat_cb4):
    with serving(tiny_chat_cb4) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            body = json.dumps({"messages": [QUESTION], "stream": True, "ignore_eos": True}).encode()
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            started = time.monotonic()
            assert server.end(signal.SIGTERM) == (0, "lutra: stopped\n")
        assert time.monotonic() - started < 9  # before it is killed


def test_llama_server_ends_however_busy_it_is(tiny_chat_cb4):
    """The handler of its signals once took a lock that its own thread held, one time in eight."""
    program = [tool_path("llama-server"), "-m", tiny_chat_cb4, "--port", "0", "-t", "1", "-np", "8", "-kvu"]
    body = json.dumps({"messages": [QUESTION], "stream": True, "ignore_eos": True}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    for _ in range(16):
        with subprocess.Popen(list(map(str, program)), stderr=subprocess.PIPE, text=True) as process:
            try:
                port = next(
                    found[1] for line in process.stderr if (found := re.search(r"listening.*:(\d+)", line))
                )
                with contextlib.ExitStack() as clients:
                    for _ in range(3):
                        client = clients.enter_context(socket.create_connection(("127.0.0.1", int(port))))
                        client.sendall(request)
                    assert client.recv(100).startswith(b"HTTP/1.1 200")
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(5) == 0
            finally:
                process.kill()


def test_llama_server_ends_with_us_even_if_we_are_killed(tiny_chat_cb4):
    with serving(tiny_chat_cb4) as server:
        child = server.child()
        assert alive(child)
        server.end(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(child)


def test_the_end_of_llama_server_is_one_line(tiny_chat_cb4):
    with serving(tiny_chat_cb4) as server:
        os.kill(server.child(), signal.SIGSEGV)
        assert server.end() == (1, "lutra: error: llama-server: was ended by SIGSEGV\n")


def test_options_behind_two_dashes_are_for_llama_server(tiny_chat_cb4):
    with serving(tiny_chat_cb4, "--ctx", 256, "--parallel", 2, "--", "--temp", "0.25") as server:
        props = json.loads(server.ask("/props")[1])
        assert props["total_slots"] == 2
        assert props["default_generation_settings"]["n_ctx"] == 256
        assert props["default_generation_settings"]["params"]["temperature"] == 0.25
    done = lutra("serve", tiny_chat_cb4, "--port", 0, "--", "--no-such-option")
    assert_error(done, "llama-server: ", "invalid argument: --no-such-option")


def test_files_that_cannot_be_served(tmp_path):
    require_built("llama-server")
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    assert_error(lutra("serve", tmp_path / "no.gguf", "--port", 0), "no.gguf")
    assert_error(lutra("serve", tmp_path / "none.gguf", "--port", 0), "none.gguf: no such file")


# ---- context and memory -------------------------------------------------------------------

MIB = 1 << 20


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """``chosen(free, ...)``: the context of a model with 16 KiB of keys and values per token."""
    file = tmp_path / "m.gguf"
    sample_gguf(file)

    def choose(free, conversations=4, tokens=None, trained=4096, types=("f16", "f16"), **values):
        heads = {"block_count": 8, "embedding_length": 2048, "context_length": trained,
                 "attention.head_count": 32, "attention.head_count_kv": 8} | values  # fmt: skip
        monkeypatch.setattr(context, "_value", lambda file, name: heads.get(name))
        monkeypatch.setattr(context, "free_memory", lambda: free + file.stat().st_size)
        return context.choose_context(file, conversations, tokens, types)

    return choose


def test_each_conversation_has_the_models_context_where_memory_allows(chosen):
    got = chosen(8 << 30)
    assert (got.tokens, got.total, got.nbytes, got.cache) == (4096, 16384, 256 * MIB, 2 << 30)
    assert chosen(1 << 40, trained=1 << 20).tokens == 32768
    assert chosen(1 << 40).cache == 8 << 30


def test_with_less_memory_conversations_share_and_then_shrink(chosen):
    assert (chosen(256 * MIB).tokens, chosen(256 * MIB).total) == (4096, 8192)
    assert (chosen(32 * MIB).tokens, chosen(32 * MIB).total) == (1024, 1024)
    assert (chosen(0).tokens, chosen(0).total, chosen(0).cache) == (256, 256, 0)


def test_a_second_layer_that_is_left_out_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(context, "free_memory", lambda: 1 << 40)
    file = tmp_path / "cb5.gguf"
    fmt = next(f for f in CB_FORMATS.values() if f.name == "CB5")
    spec = TensorSpec("blk.0.ffn_up.weight", fmt.type, (64, 512), fmt.tensor_bytes(64, 512))
    with GGUFWriter(
        file, {"general.architecture": GGUFValue("llama", GGUFValueType.STRING)}, [spec]
    ) as writer:
        writer.write(np.zeros(spec.nbytes, np.uint8))
    assert context.choose_context(file, 1).weights == file.stat().st_size
    monkeypatch.setenv("LUTRA_LAYERS", "1")
    assert context.choose_context(file, 1).weights == file.stat().st_size - 64 * 512 // 8  # a bit for each


def test_what_is_asked_for_is_given(chosen):
    assert (chosen(0, tokens=9000).tokens, chosen(0, tokens=9000).total) == (9000, 9000)
    assert chosen(1 << 40, tokens=100_000).total == 400_000


def test_the_size_of_keys_and_values(chosen):
    def per_token(**values):
        got = chosen(8 << 30, **values)
        return got.nbytes / got.total

    assert per_token() == 8 * 8 * 64 * 2 * 2
    assert per_token(types=("q8_0", "f32")) == 8 * 8 * 64 * (34 / 32 + 4)
    assert per_token(**{"attention.key_length": 128, "attention.value_length": 96}) == 8 * 8 * (128 + 96) * 2
    assert per_token(**{"attention.head_count_kv": [4, 0, 2]}) == 6 * 64 * 2 * 2
    assert per_token(**{"attention.head_count_kv": None}) == 8 * 32 * 64 * 2 * 2
    assert per_token(**{"attention.head_count_kv": [0, 0]}) == 0  # a recurrent model
