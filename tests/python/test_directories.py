# SPDX-License-Identifier: MIT
"""Hugging Face directories as people really save them: each is read, or one line says why not."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from cli_runner import TINY_CHAT
from gguf_samples import hf_model, read_hf, sample_gguf, stored_names, write_safetensors, write_stored

from gguf_tools.errors import LutraError
from gguf_tools.sources.open import open_source
from lutra.conversion.options import source_name
from lutra.conversion.workdir import source_files

TOKENS, KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
EOS, EOT, EOM = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
MORE = "tokenizer.lutra.end_token_ids"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@pytest.fixture
def tiny_chat(tmp_path):
    """The bundled model, to be changed."""
    return shutil.copytree(TINY_CHAT, tmp_path / "tiny-chat")


@pytest.fixture
def qwen(tmp_path):
    """A byte-level BPE, untied, to be changed."""
    return hf_model(tmp_path / "qwen")


def edit(path, **changes):
    """Change keys of a JSON file, which may not be there; None removes one."""
    values = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def values(directory):
    with open_source(directory) as source:
        return {key: value.value for key, value in source.metadata.items()}


def refused(directory, *words):
    with pytest.raises(LutraError) as error:
        open_source(directory)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# ---- model cards and generation_config.json ---------------------------------------------------


@pytest.mark.parametrize(
    ("card", "expected", "warned"),
    [
        ("language: [en, no]", {"general.languages": ["en", "no"]}, ""),
        ("language:\n- en\n- off\n- y", {"general.languages": ["en", "off", "y"]}, ""),
        ("language: no", {"general.languages": ["no"]}, ""),
        ("tags:\n- llama\n- 2024", {"general.tags": ["llama", "2024"]}, ""),
        ("tags: [a, 2024-01-31, 1.5, true, null]", {"general.tags": ["a", "2024-01-31", "1.5", "true"]}, ""),
        ("tags: [a, {b: c}]", {"general.tags": ["a"]}, "tags"),
        ("tags:", {"general.tags": None}, ""),
        ("version: 1.0", {"general.version": "1.0"}, ""),
        ("version: 1.10", {"general.version": "1.10"}, ""),
        ("model_name: 7", {"general.name": "7"}, ""),
        ("model_name: [a, b]", {"general.name": "qwen"}, "name"),
        ("license_link: 5", {"general.license.link": "5"}, ""),
        ("license_name: foo: bar", {"general.license.name": None, "general.license": "mit"}, "foo: bar"),
        ("tags:\n- a\n- b: [\nversion: 3", {"general.tags": None, "general.version": "3"}, "tags:"),
        ("license: [mit, apache-2.0]", {"general.license": "mit,apache-2.0"}, ""),
        ("license: {a: b}", {"general.license": None}, "license"),
        ("base_model: [org/a, 5, {name: 3, x: {}}]", {"general.base_model.count": 3}, "base_models"),
        ("base_model: 5", {"general.base_model.0.name": "5"}, ""),
        ("datasets: {a: b}", {"general.dataset.count": None}, ""),
        ("? [a]\n: b", {"general.license": "mit"}, "no YAML"),
        ("just words", {"general.license": "mit"}, "just words"),
        ("description: \x01", {"general.license": "mit"}, "no YAML"),
        ("a: " + "[" * 5000, {"general.license": "mit"}, "no YAML"),
    ],
)
def test_model_cards(qwen, caplog, card, expected, warned):
    (qwen / "README.md").write_text(f"---\nlicense: mit\n{card}\n---\n# A model\n")
    found = values(qwen)
    for key, value in expected.items():
        assert found.get(key) == value, key
    assert bool(caplog.messages) == bool(warned), caplog.messages
    assert warned in " ".join(caplog.messages)
    assert all("\n" not in message and "README.md" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "data", [b"", b"---", b"---\nlicense: mit\n", b"---\n---\n", b"\xff\xfe\x00", b"# A model\n"]
)
def test_cards_without_anything(qwen, data):
    (qwen / "README.md").write_bytes(data)
    assert "general.license" not in values(qwen)


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbf---\nlicense: mit\n---\n", b"---\r\nlicense: mit\r\n--- \r\ncaf\xe9"]
)
def test_cards_of_other_editors(qwen, data):
    (qwen / "README.md").write_bytes(data)
    assert values(qwen)["general.license"] == "mit"


@pytest.mark.parametrize(
    ("config", "expected", "warned"),
    [
        ({"top_k": 50.0, "temperature": "0.7"}, {"top_k": 50, "temp": 0.7}, 0),
        ({"top_k": "40", "top_p": 1, "min_p": " 5e-2 "}, {"top_k": 40, "top_p": 1.0, "min_p": 0.05}, 0),
        ({"repetition_penalty": "1.1"}, {"penalty_repeat": 1.1}, 0),
        ({"top_k": None, "temperature": None}, {"top_k": None, "temp": None}, 0),
        ({"top_k": 50.5, "temperature": "warm"}, {"top_k": None, "temp": None}, 2),
        ({"top_k": True, "temperature": [0.7], "top_p": {}}, {"top_k": None, "temp": None, "top_p": None}, 3),
        ({"top_k": 1e300, "temperature": "nan", "top_p": "inf"}, {"top_k": None, "temp": None}, 3),
    ],
)  # fmt: skip
def test_numbers_of_generation_config(qwen, caplog, config, expected, warned):
    (qwen / "generation_config.json").write_text(json.dumps(config))
    found = values(qwen)
    assert {key: found.get(f"general.sampling.{key}") for key in expected} == expected
    assert len(caplog.messages) == warned, caplog.messages


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_generation_config_is_left_out(qwen, caplog, data):
    (qwen / "generation_config.json").write_bytes(data)
    assert values(qwen)["general.architecture"] == "qwen2"
    assert "generation_config.json" in caplog.text


# ---- config.json -----------------------------------------------------------------------------


def stored(directory):
    with open_source(directory) as source:
        return {tensor.name for tensor in source.tensors}


@pytest.mark.parametrize("method", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {}, None, "gptq"])
def test_a_left_over_quantization_config(qwen, method):
    expected = stored(qwen)
    edit(qwen / "config.json", quantization_config=method)
    assert stored(qwen) == expected


@pytest.mark.parametrize("dtype", ["U8", "I8"])
def test_weights_that_are_quantized_in_a_way_that_is_not_read(qwen, dtype):
    edit(qwen / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    tensors = {name: (dtype, np.zeros(read_hf(qwen, name).shape, np.uint8)) for name in stored_names(qwen)}
    write_stored(qwen / "model.safetensors", tensors)
    refused(qwen, "quantized by bitsandbytes, which is not read (fp8", "start from the model")


def without_head(directory, **extra):
    """Write the model anew without its lm_head, with other tensors instead."""
    with open_source(directory) as source:
        shape = next(t.shape for t in source.tensors if t.name == "token_embd.weight")
    raw = (directory / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name not in ("__metadata__", "lm_head.weight"):
            start, stop = (8 + length + at for at in entry["data_offsets"])
            bits = np.frombuffer(raw[start:stop], np.uint16).astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    tensors |= {name: np.ones(shape, np.float32) for name in extra.get("names", ())}
    write_safetensors(directory / "model.safetensors", tensors)


def test_tied_where_config_does_not_say(qwen):
    without_head(qwen)
    refused(qwen, "output.weight")
    edit(qwen / "config.json", tie_word_embeddings=None)
    assert "output.weight" not in stored(qwen)


def test_a_head_beside_tied_embeddings_is_not_used(qwen):
    assert "output.weight" in stored(qwen)
    edit(qwen / "config.json", tie_word_embeddings=None)
    assert "output.weight" in stored(qwen)
    edit(qwen / "config.json", tie_word_embeddings=True)
    assert "output.weight" not in stored(qwen)


@pytest.mark.parametrize("key", ["hidden_act", "hidden_activation"])
def test_an_activation_that_the_graph_does_not_compute(qwen, key):
    edit(qwen / "config.json", **{key: "swish"})
    stored(qwen)
    for name in ("relu", "gelu", "gelu_pytorch_tanh", "relu2"):
        edit(qwen / "config.json", **{key: name})
        refused(qwen, repr(name), "silu", "config.json")


def test_whole_numbers_may_be_floats(qwen):
    edit(qwen / "config.json", max_position_embeddings=512.0)
    assert values(qwen)["qwen2.context_length"] == 512
    edit(qwen / "config.json", max_position_embeddings=512.5)
    refused(qwen, "max_position_embeddings")


# ---- tokenizers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"IQ== 0\nIg== 1\n", b"", b"version https://git-lfs.github.com/spec/v1\n", b"{}"]
)
def test_a_tokenizer_model_that_is_none_beside_tokenizer_json(tiny_chat, caplog, data):
    expected = values(tiny_chat)
    (tiny_chat / "tokenizer.model").write_bytes(data)
    found = values(tiny_chat)
    assert found[TOKENS] == expected[TOKENS]
    assert found[KINDS] == expected[KINDS]
    assert bool(caplog.messages) == (not data.startswith(b"IQ"))
    (tiny_chat / "tokenizer.json").unlink()
    refused(tiny_chat, "tokenizer.model", "tokenizer.json")


def test_markers_that_only_tokenizer_json_has(tiny_chat):
    expected = values(tiny_chat)
    config = tiny_chat / "tokenizer_config.json"
    edit(config, added_tokens_decoder=None, additional_special_tokens=None)
    found = values(tiny_chat)
    assert found[TOKENS] == expected[TOKENS]
    assert found[KINDS][3:7] == expected[KINDS][3:7] == [CONTROL] * 4
    tokens = json.loads((tiny_chat / "tokenizer.json").read_text())["added_tokens"]
    tokens.append({"id": 4090, "content": "[tool]", "special": False})
    edit(tiny_chat / "tokenizer.json", added_tokens=tokens)
    assert (values(tiny_chat)[TOKENS][4090], values(tiny_chat)[KINDS][4090]) == ("[tool]", USER_DEFINED)
    edit(config, added_tokens_decoder={"4090": {"content": "[last]", "special": True}})
    assert (values(tiny_chat)[TOKENS][4090], values(tiny_chat)[KINDS][4090]) == ("[last]", CONTROL)


def test_ids_that_stand_for_none(qwen):
    edit(qwen / "config.json", pad_token_id=-1, bos_token_id=-1, eos_token_id=-1)
    edit(qwen / "tokenizer_config.json", pad_token=None, eos_token=None)
    assert not {EOS, "tokenizer.ggml.padding_token_id", "tokenizer.ggml.bos_token_id"} & values(qwen).keys()


def test_markers_that_only_tokenizer_model_has(tiny_chat):
    edit(tiny_chat / "tokenizer_config.json", added_tokens_decoder=None)
    (tiny_chat / "tokenizer.json").unlink()
    assert values(tiny_chat)[KINDS][3:7] == [CONTROL] * 4


def test_a_family_by_its_type(tiny_chat):
    expected = values(tiny_chat)
    edit(tiny_chat / "config.json", architectures=None)
    assert values(tiny_chat) == expected
    edit(tiny_chat / "config.json", model_type="llama4")
    refused(tiny_chat, "without architecture")


def test_ends_beside_the_eot_that_a_post_processor_makes(tiny_chat):
    """It appends </s>, so that becomes eos, and what tokenizer_config.json calls eos is eot."""
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [text, end], "pair": [],
                 "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}}  # fmt: skip
    edit(tiny_chat / "tokenizer.json", post_processor=processor)
    edit(tiny_chat / "generation_config.json", eos_token_id=[6, 5, 4])
    found = values(tiny_chat)
    assert {key: found.get(key) for key in (EOS, EOT, EOM, MORE)} == {EOS: 2, EOT: 6, EOM: 5, MORE: "4"}
    assert found["tokenizer.ggml.add_eos_token"] is False


def test_the_template_in_a_file_of_its_own_counts(tiny_chat):
    (tiny_chat / "chat_template.jinja").write_text("{{ 'newer' }}")
    assert values(tiny_chat)["tokenizer.chat_template"] == "{{ 'newer' }}"


def test_an_index_that_is_left_over(qwen):
    (qwen / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    assert "token_embd.weight" in stored(qwen)


def test_an_activation_that_the_family_does_not_read(tmp_path):
    model = hf_model(tmp_path / "gemma", "Gemma2ForCausalLM", hidden_act="gelu")
    edit(model / "config.json", hidden_activation="gelu_pytorch_tanh")
    stored(model)


def test_a_template_without_tokenizer_config(tiny_chat):
    (tiny_chat / "tokenizer_config.json").unlink()
    (tiny_chat / "chat_template.jinja").write_text("{{ messages }}")
    assert values(tiny_chat)["tokenizer.chat_template"] == "{{ messages }}"


def test_a_text_that_two_tokens_have(tiny_chat, caplog):
    decoder = json.loads((tiny_chat / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    twice = {
        "4090": {"content": "<|user|>", "special": True},
        "4091": {"content": "<|user|>", "special": True},
    }
    edit(tiny_chat / "tokenizer_config.json", added_tokens_decoder=decoder | twice)
    found = values(tiny_chat)
    assert len(set(found[TOKENS])) == len(found[TOKENS])
    assert found[TOKENS].index("<|user|>") == 4
    assert found[KINDS][4090:4092] == [UNUSED, UNUSED]
    assert [("<|user|>" in message, "4090" in message) for message in caplog.messages] == [
        (True, True),
        (True, False),
    ]


def test_a_token_that_is_called_like_a_placeholder(qwen):
    tokenizer = json.loads((qwen / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["[PAD262]"] = 263
    edit(qwen / "tokenizer.json", model=tokenizer["model"])
    found = values(qwen)
    assert (found[TOKENS][263], found[KINDS][263]) == ("[PAD262]", NORMAL)
    assert len(set(found[TOKENS])) == len(found[TOKENS])


def test_no_file_appends_eos_to_a_prompt(tiny_chat):
    edit(tiny_chat / "tokenizer_config.json", add_eos_token=True)
    assert values(tiny_chat)["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ([259, 258], 259, {EOS: 259, EOT: None, MORE: None}),  # texts that llama.cpp knows
        ([259, 260], None, {EOS: 259, EOT: 260, EOM: None}),
        (None, [259, 260], {EOS: 259, EOT: 260, EOM: None}),
        (260, [257, 259], {EOT: 260, EOM: 257, MORE: None}),
        ([256, 257, 260, 65, 66], None, {EOT: 256, EOM: 257, MORE: "260 65 66"}),
        ([True, -1, 264, "two", None, 1.5], None, {EOS: 259, EOT: None}),
    ],
)
def test_all_that_ends_an_answer(qwen, generation, config, expected):
    edit(qwen / "generation_config.json", eos_token_id=generation)
    edit(qwen / "config.json", eos_token_id=config)
    found = values(qwen)
    assert {key: found.get(key) for key in expected} == expected


def test_eos_that_only_generation_config_names(qwen):
    edit(qwen / "tokenizer_config.json", eos_token=None)
    edit(qwen / "generation_config.json", eos_token_id=[260, 257])
    found = values(qwen)
    assert (found[EOS], found[EOT]) == (260, 257)


# ---- where directories lie -------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    """The hub's cache of a model: models--ORG--NAME with snapshots whose files are links."""
    hub = tmp_path / "hub" / "models--someone--tiny-chat"
    files = hf_model(tmp_path / "files")
    sample_gguf(files / "model-f16.gguf")
    (hub / "blobs").mkdir(parents=True)
    (hub / "refs").mkdir()
    for i, revision in enumerate(("0" * 40, "1" * 40)):
        directory = hub / "snapshots" / revision
        directory.mkdir(parents=True)
        for file in files.iterdir():
            blob = hub / "blobs" / f"{revision[0]}{file.name}"
            shutil.copy(file, blob)
            (directory / file.name).symlink_to(os.path.relpath(blob, directory))
        os.utime(directory, (i, i))
    (hub / "refs" / "main").write_text("0" * 40)
    return hub


def test_a_model_in_the_cache_of_the_hub(cached, monkeypatch):
    snapshot = cached / "snapshots" / ("0" * 40)
    assert open_source(cached).path == snapshot
    for path in (cached, snapshot):
        assert source_name(str(path)) == "tiny-chat"
        assert values(path)["general.name"] == "Tiny Chat"
    assert source_name(str(snapshot / "model-f16.gguf")) == "model"
    monkeypatch.chdir(snapshot)
    assert source_name(".") == "tiny-chat"
    (cached / "refs" / "main").unlink()
    assert open_source(cached).path.name == "1" * 40  # the newest
    shutil.rmtree(cached / "snapshots")
    (cached / "snapshots").mkdir()
    refused(cached, "no snapshot")


def test_only_files_that_are_read_make_a_source_another(tiny_chat):
    def files():
        with open_source(tiny_chat) as source:
            return source_files(source)

    before = files()
    assert {"model.safetensors", "config.json", "tokenizer.model"} <= {name for name, *_ in before}
    for name in ("log", "report.json", "other.gguf", "notes.txt", ".hidden"):
        (tiny_chat / name).write_text("x")
    assert files() == before
    edit(tiny_chat / "config.json", anything=1)
    assert files() != before
