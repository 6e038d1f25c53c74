# SPDX-License-Identifier: MIT
"""The bundled model answers whatever program asks: each writes the same tokens, with one BOS."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from cli_runner import TINY_CHAT, environment, lutra, require_built

from lutra.runtime.model import Model
from lutra.runtime.paths import lib_dir, tool_path

PARIS = "The capital of France is Paris."
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def prompt(f16):
    """The tokens that lutra makes of the question."""
    with Model(f16, weights=False, n_ctx=32) as model:
        tokens = model.tokenize(model.template.render(MESSAGES))
        assert model.template.render(MESSAGES).startswith(model.special_token("bos"))
    assert tokens.count(1) == 1
    return tokens


def test_lutra(f16):
    assert lutra("chat", f16, "-p", MESSAGES[0]["content"]).stdout.strip() == PARIS


def test_llama_cpp_python(f16, prompt):
    """The package's own high level, with our libraries."""
    code = f"""
import json, sys, llama_cpp
model = llama_cpp.Llama({str(f16)!r}, n_ctx=256, verbose=False)
answer = model.create_chat_completion({MESSAGES!r}, temperature=0, max_tokens=30)
json.dump([answer["choices"][0]["message"]["content"], model.input_ids[: {len(prompt)}].tolist()], sys.stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({"LLAMA_CPP_LIB_PATH": str(lib_dir())}),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [PARIS, prompt]


def test_llama_server(f16, prompt):
    require_built("llama-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [tool_path("llama-server"), "-m", f16, "--port", str(port), "-c", "256", "--no-webui"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 30}
        answer = asked(f"http://127.0.0.1:{port}/v1/chat/completions", body, server)
    finally:
        server.terminate()
        server.wait(60)
    assert answer["choices"][0]["message"]["content"].strip() == PARIS
    assert answer["usage"]["prompt_tokens"] == len(prompt)


def asked(url, body, server):
    """The answer of a server that may still be loading."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 200
    while True:
        try:
            with urllib.request.urlopen(request, timeout=200) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.mark.torch
def test_transformers(prompt):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_CHAT)
    tokens = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert tokens == prompt
    model = AutoModelForCausalLM.from_pretrained(TINY_CHAT, dtype=torch.float32)
    answer = model.generate(torch.tensor([tokens]), max_new_tokens=30)[0, len(tokens) :]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == PARIS
