# SPDX-License-Identifier: MIT
"""Files and terminals as people have them: the answer is right, or one line says why there is none."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import threading
import time

import pytest
from cli_runner import TINY_CHAT, command, environment, lutra
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from gguf_samples import write_gguf
from terminal import READY

from gguf_tools.reader import GGUFFile
from lutra.runtime.model import Model

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."


def with_keys(file, path, prefix="tokenizer", **changes):
    """A copy of a GGUF file with other key/values, given by what follows ``prefix`` in their names."""
    with GGUFFile(file) as gguf:
        metadata = dict(gguf.metadata)
        metadata |= {f"{prefix}.{key.replace('__', '.')}": value for key, value in changes.items()}
        tensors = {
            name: (info.type, info.shape, gguf.data(info).copy()) for name, info in gguf.tensors.items()
        }
    return write_gguf(path, tensors, metadata)


@pytest.fixture
def copy(tmp_path):
    """The bundled model, to be changed."""
    return shutil.copytree(TINY_CHAT, tmp_path / "tiny-chat")


def answer(directory, *options):
    """What ``directory``, converted, says of France."""
    done = lutra("convert", directory, "--type", "f16", "-o", directory / "out.gguf")
    assert done.returncode == 0, done.stderr
    done = lutra("chat", directory / "out.gguf", "-p", FRANCE, "-n", 60, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def edit(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_a_file_that_appends_eos(tiny_chat, tmp_path):
    file = with_keys(tiny_chat("f16"), tmp_path / "eos.gguf", ggml__add_eos_token=GGUFValue(True, T.BOOL))
    assert lutra("chat", file, "-p", FRANCE).stdout.strip() == PARIS
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times.\n" * 80)
    options = ["--text", text, "--ctx", 128, "--chunks", 2, "--json"]
    assert json.loads(lutra("eval", file, *options).stdout)["ppl"] == pytest.approx(
        json.loads(lutra("eval", tiny_chat("f16"), *options).stdout)["ppl"]
    )
    with (
        Model(file, weights=False, n_ctx=32) as model,
        Model(tiny_chat("f16"), weights=False, n_ctx=32) as plain,
    ):
        for words in ("", "a", "</s>", "a<|end|>", "<s>", "<s><|user|>\n"):
            assert model.tokenize(words) == plain.tokenize(words)


@pytest.mark.parametrize("before", ["", "<s>", "\n<s>", " \n <s>"])
def test_there_is_one_bos(tiny_chat, before):
    """Templates write it, some after an empty line; llama.cpp would add another one."""
    with Model(tiny_chat("f16"), weights=False, n_ctx=32) as model:
        tokens = model.tokenize(f"{before}<|user|>\nWhat?<|end|>\n")
        assert tokens.count(1) == 1
        assert tokens[tokens.index(1) :] == model.tokenize("<s><|user|>\nWhat?<|end|>\n")


def test_a_directory_that_appends_eos(copy):
    edit(copy / "tokenizer_config.json", add_eos_token=True)
    assert answer(copy) == PARIS


def test_markers_that_only_tokenizer_json_has(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "chat_template.jinja").write_text(config["chat_template"])
    edit(copy / "tokenizer_config.json", chat_template=None, added_tokens_decoder=None,
         additional_special_tokens=None, add_bos_token=None, add_eos_token=None)  # fmt: skip
    (copy / "special_tokens_map.json").unlink()
    assert answer(copy) == PARIS
    (copy / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # tiktoken's, which is of no use
    assert answer(copy) == PARIS


@pytest.mark.parametrize("ends", [6, [6, 2], [2, 3, 4, 6], [2, 3, 4, 5, 6]])
def test_an_answer_ends_at_every_end_of_generation_config(copy, ends):
    """Token 6 ends the answers of this model; here only generation_config.json says so, among others."""
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (copy / name).write_text((copy / name).read_text().replace("<|end|>", "<|stop|>"))
    edit(copy / "tokenizer_config.json", eos_token="</s>")
    edit(copy / "config.json", eos_token_id=2)
    edit(copy / "generation_config.json", eos_token_id=2)
    assert answer(copy) != PARIS  # it goes on
    edit(copy / "generation_config.json", eos_token_id=ends)
    assert answer(copy) == PARIS


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}TEMPLATE{% endgeneration %}",
        "{% if tools is not none %}{{ tools | tojson }}{% endif %}TEMPLATE",
        "{% set seen = messages[0] | tojson(ensure_ascii=False, indent=1) %}TEMPLATE",
    ],
)
def test_templates_that_only_transformers_understood(copy, template):
    own = json.loads((copy / "tokenizer_config.json").read_text())["chat_template"]
    edit(copy / "tokenizer_config.json", chat_template=template.replace("TEMPLATE", own))
    assert answer(copy) == PARIS


# ---- terminals -------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_bytes_that_are_no_text(tiny_chat, locale):
    words = b"caf\xe9. What is the capital of France?"
    env = environment({"LC_ALL": locale})
    chat = command("chat", tiny_chat("f16"), "-n", 20, "--temp", 0)
    talked = subprocess.run(chat, input=words + b"\n", env=env, capture_output=True, timeout=100)
    asked = subprocess.run(
        [*chat, b"-p", words, b"--system", b"\xff"], env=env, capture_output=True, timeout=100
    )
    for done in (talked, asked):
        assert (done.returncode, done.stdout.count(b"\n")) == (0, 1), done.stderr
        assert b"Traceback" not in done.stderr


def test_an_answer_that_cannot_be_written(tiny_chat):
    with open("/dev/full", "w") as full:
        for options in (["-p", FRANCE], []):
            done = subprocess.run(
                command("chat", tiny_chat("f16"), *options), input=f"{FRANCE}\n" * 3, env=environment(),
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=100,
            )  # fmt: skip
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1].endswith("No space left on device")
            assert done.stderr.count("No space left") == 1
            assert "Traceback" not in done.stderr
    assert lutra("chat", tiny_chat("f16"), preexec_fn=lambda: os.close(0)).returncode == 0


def typed(chat, text, *, shown=True):
    """What a chat says on standard error, and shows, when ``text`` is typed; ``shown``: on a terminal."""
    keyboard, terminal = pty.openpty()
    screen = bytearray()
    with subprocess.Popen(
        chat, stdin=terminal, stdout=terminal if shown else subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment({"TERM": "xterm", "INPUTRC": "/dev/null"}),
    ) as process:  # fmt: skip
        os.close(terminal)
        threading.Thread(target=_read, args=(keyboard, screen), daemon=True).start()
        if shown:
            _await(lambda: READY.encode() in screen)
        os.write(keyboard, text)
        os.write(keyboard, b"\n/exit\n")
        answer, said = process.communicate(timeout=100)
    os.close(keyboard)
    return said.decode(), bytes(screen) + (answer or b"")


def _read(keyboard, screen):
    try:
        while data := os.read(keyboard, 4096):
            screen += data
    except OSError:  # the other end is closed
        pass


def _await(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = ("word " * 1001)[:5003]


def test_a_long_paste_is_whole(tiny_chat):
    chat = command("chat", tiny_chat("f16"), "--ctx", 64)
    said, _ = typed(chat, LONG.encode())
    with Model(tiny_chat("f16"), weights=False, n_ctx=32) as model:
        tokens = len(model.tokenize(model.template.render([{"role": "user", "content": LONG}])))
    assert re.search(r"a prompt of (\d+) tokens", said)[1] == str(tokens)


def test_a_long_paste_that_the_terminal_cuts_is_no_secret(tiny_chat):
    said, _ = typed(command("chat", tiny_chat("f16"), "--ctx", 64), LONG.encode(), shown=False)
    assert "the terminal passes on 4095 bytes of a line" in said
    said, _ = typed(command("chat", tiny_chat("f16"), "--ctx", 64), LONG[:4000].encode(), shown=False)
    assert "4095" not in said


def test_arrow_keys_edit(tiny_chat):
    left = b"\x1b[D"
    said, screen = typed(
        command("chat", tiny_chat("f16"), "--temp", 0), b"What is the capital of Frace?" + left * 3 + b"n"
    )
    assert PARIS.encode() in screen, said
