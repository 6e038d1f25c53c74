# SPDX-License-Identifier: MIT
"""Files and terminals as people have them: the answer is right, or one line says why there is none."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_runner import TINY_CHAT, lutra
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from gguf_samples import write_gguf

from gguf_tools.reader import GGUFFile
from lutra.runtime.model import Model

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."


def with_keys(file, path, **changes):
    """A copy of a GGUF file with other key/values, those of the tokenizer by their last part."""
    with GGUFFile(file) as gguf:
        metadata = dict(gguf.metadata)
        metadata |= {f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()}
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
