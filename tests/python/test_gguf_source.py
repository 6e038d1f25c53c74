# SPDX-License-Identifier: MIT
"""Sources of weights: GGUF files and Hugging Face directories, sound and damaged."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import (
    F16,
    F32,
    METADATA,
    byte_level_tokenizer,
    hf_model,
    read_hf,
    sample_gguf,
    write_gguf,
    write_safetensors,
)

from gguf_tools.errors import LutraError
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import keeps_f32, open_source

REPOSITORY = Path(__file__).parents[2]
TINY_CHAT = REPOSITORY / "models" / "tiny-chat"
LAYER = "model.layers.0."


@pytest.fixture
def tiny_chat(tmp_path):
    """models/tiny-chat without its model card, which would add keys."""
    return Path(
        shutil.copytree(TINY_CHAT, tmp_path / "tiny-chat", ignore=shutil.ignore_patterns("README.md"))
    )


def plain(source):
    return {key: value.value for key, value in source.metadata.items()}


def edit(directory, file, **changes):
    """Change keys of a JSON file; None removes one."""
    value = {**json.loads((directory / file).read_text()), **changes}
    (directory / file).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def read_all(source):
    """Open a source and read all of it."""
    with open_source(source) as opened:
        for tensor in opened.tensors:
            tensor.read()


def refused(source, *words):
    """The one line that refuses a source; it must hold ``words``."""
    with pytest.raises(LutraError) as error:
        read_all(source)
    message = str(error.value)
    assert "\n" not in message
    assert str(source) in message
    for word in words:
        assert word in message
    return message


# ---- the same as upstream's converter --------------------------------------------------------


def test_tiny_chat_is_what_upstream_makes_of_it(tiny_chat):
    """Keys, values, tensors and their order against digests of convert_hf_to_gguf.py's F16 output."""
    expected = json.loads((Path(__file__).parent / "data" / "tiny_chat_f16.json").read_text())

    def digest(value):
        if isinstance(value, float):
            return float(np.float32(value))
        if not isinstance(value, list):
            return value
        if isinstance(value[0], str):
            data = "\0".join(value).encode()
        else:
            data = np.array(value, "<f4" if isinstance(value[0], float) else "<i4").tobytes()
        return [len(value), hashlib.sha256(data).hexdigest()]

    source = open_source(tiny_chat)
    assert {key: digest(value) for key, value in plain(source).items()} == expected["metadata"]
    assert list(source.metadata) == list(expected["metadata"])
    found = {}
    for t in source.tensors:
        kind = F32 if keeps_f32(t.name, t.shape) else F16
        data = t.read().astype("<f4" if kind == F32 else "<f2").tobytes()
        found[t.name] = [kind, list(t.shape), hashlib.sha256(data).hexdigest()[:16]]
    assert found == expected["tensors"]
    assert list(found) == list(expected["tensors"])


def test_vocabulary_from_tokenizer_json_merges_like_sentencepiece(tiny_chat):
    expected = plain(open_source(tiny_chat))
    (tiny_chat / "tokenizer.model").unlink()
    found = plain(open_source(tiny_chat))
    scores = "tokenizer.ggml.scores"
    for key in expected.keys() - {scores}:
        assert found[key] == expected[key], key
    merges = json.loads((tiny_chat / "tokenizer.json").read_text())["model"]["merges"]
    merged = {"".join(m.split(" ") if isinstance(m, str) else m) for m in merges}
    ids = [i for i, token in enumerate(expected["tokenizer.ggml.tokens"]) if token in merged]
    assert len(ids) > 3000
    order = [sorted(ids, key=lambda i, s=model[scores]: -s[i]) for model in (expected, found)]
    assert order[0] == order[1]


# ---- Qwen2 and Llama -------------------------------------------------------------------------


def test_qwen2(tmp_path):
    source = open_source(hf_model(tmp_path / "Tiny-Qwen-Instruct"))
    values = plain(source)
    expected = {
        "general.architecture": "qwen2",
        "general.name": "Tiny Qwen Instruct",
        "general.file_type": 1,
        "qwen2.block_count": 1,
        "qwen2.context_length": 512,
        "qwen2.embedding_length": 192,
        "qwen2.feed_forward_length": 320,
        "qwen2.attention.head_count": 3,
        "qwen2.attention.head_count_kv": 1,
        "qwen2.rope.freq_base": 1000000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": 259,
        "tokenizer.ggml.padding_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    assert {key: values.get(key) for key in expected} == expected
    assert "tokenizer.ggml.bos_token_id" not in values
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[256:] == ["th", "the", "<|endoftext|>", "<|im_end|>", "<tool_call>"] + [
        f"[PAD{i}]" for i in (261, 262, 263)
    ]
    assert [int(k) for k in kinds[256:]] == [1, 1, 3, 3, 4, 5, 5, 5]
    names = {t.name: t for t in source.tensors}
    assert len(names) == 15
    pairs = {
        "blk.0.attn_q.weight": LAYER + "self_attn.q_proj.weight",
        "blk.0.attn_k.bias": LAYER + "self_attn.k_proj.bias",
        "blk.0.ffn_down.weight": LAYER + "mlp.down_proj.weight",
        "output.weight": "lm_head.weight",
    }
    for name, hf_name in pairs.items():
        stored = read_hf(source.path, hf_name)
        assert names[name].shape == stored.shape
        assert np.array_equal(
            names[name].read(), np.atleast_2d(stored)
        )  # Qwen2 rotates halves: no reordering


@pytest.mark.parametrize("head_dim", [64, 32])
def test_llama_interleaves_the_halves_of_q_and_k(tmp_path, head_dim):
    config = {} if head_dim == 64 else {"head_dim": 32}
    source = open_source(hf_model(tmp_path / "m", "LlamaForCausalLM", **config))
    assert plain(source)["llama.rope.dimension_count"] == head_dim
    assert plain(source)["llama.attention.key_length"] == head_dim
    assert plain(source)["tokenizer.ggml.pre"] == "llama-bpe"
    names = {t.name: t for t in source.tensors}
    for name, letter, heads in (("blk.0.attn_q.weight", "q", 3), ("blk.0.attn_k.weight", "k", 1)):
        stored = read_hf(source.path, f"{LAYER}self_attn.{letter}_proj.weight")
        read = names[name].read()
        for head in range(heads):
            for i in range(head_dim // 2):
                for half in (0, 1):
                    row = head * head_dim + half * head_dim // 2 + i
                    assert np.array_equal(read[head * head_dim + 2 * i + half], stored[row])
        pieces = [names[name].read(start, min(start + 5, len(read))) for start in range(0, len(read), 5)]
        assert np.array_equal(np.concatenate(pieces), read)


def test_llama3_rope_factors(tmp_path):
    """Short wavelengths stay, long ones are slowed by the factor, in between it is monotone."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    source = open_source(
        hf_model(tmp_path / "m", "LlamaForCausalLM", rope_theta=500000.0, rope_scaling=scaling)
    )
    first = source.tensors[0]
    assert (first.name, first.shape) == ("rope_freqs.weight", (32,))
    factors = first.read()[0]
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(32) / 32)
    assert (factors[wavelengths < 2048] == 1).all()
    assert (factors[wavelengths > 8192] == 8).all()
    between = factors[(wavelengths > 2048) & (wavelengths < 8192)]
    assert len(between) >= 2
    assert (np.diff(between) > 0).all()
    assert 1 < between[0] < between[-1] < 8


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {"type": "yarn", "factor": 4.0, "original_context_length": 128},
        ),
        ({"rope_type": "default"}, {}),
    ],
)
def test_rope_scaling(tmp_path, scaling, expected):
    values = plain(open_source(hf_model(tmp_path / "m", rope_scaling=scaling)))
    prefix = "qwen2.rope.scaling."
    assert {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)} == expected


def test_shards_and_dtypes_make_no_difference(tmp_path):
    single = open_source(hf_model(tmp_path / "a"))
    sharded = open_source(hf_model(tmp_path / "b", shards=3))
    f16 = open_source(hf_model(tmp_path / "c", dtype="F16"))
    f32 = open_source(hf_model(tmp_path / "d", dtype="F32"))
    by_name = [{t.name: t.read() for t in s.tensors} for s in (single, sharded, f16, f32)]
    assert {t.dtype for t in f32.tensors} == {"F32"}
    for name, weights in by_name[0].items():
        assert np.array_equal(weights, by_name[1][name])
        assert np.allclose(weights, by_name[3][name], rtol=2**-7)
        assert np.allclose(by_name[2][name], by_name[3][name], rtol=2**-10, atol=1e-7)


def test_tied_output_may_be_absent(tmp_path):
    model = hf_model(tmp_path / "m", tie_word_embeddings=True)
    tensors = {
        t: read_hf(model, t)
        for t in json.loads(_header(model))
        if t not in ("lm_head.weight", "__metadata__")
    }
    write_safetensors(model / "model.safetensors", tensors)
    assert "output.weight" not in {t.name for t in open_source(model).tensors}
    edit(model, "config.json", tie_word_embeddings=False)
    refused(model, "output.weight")


def _header(model):
    raw = (model / "model.safetensors").read_bytes()
    return raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]


def test_chat_template_of_its_own_file(tmp_path):
    model = hf_model(tmp_path / "m")
    edit(model, "tokenizer_config.json", chat_template=None)
    (model / "chat_template.jinja").write_text("{{ jinja }}")
    assert plain(open_source(model))["tokenizer.chat_template"] == "{{ jinja }}"


# ---- GGUF ------------------------------------------------------------------------------------


def test_gguf_source(tmp_path):
    path = sample_gguf(tmp_path / "in.gguf")
    source, file = open_source(path), GGUFFile(path)
    assert source.metadata == METADATA
    assert source.architecture == "llama"
    tensors = {t.name: t for t in source.tensors}
    three = tensors["token_embd.weight"]
    assert (three.shape, three.rows, three.k, three.dtype) == ((2, 4, 64), 8, 64, "F16")
    raw = {name: file.data(info) for name, info in file.tensors.items()}
    f16 = raw["token_embd.weight"].view(np.float16).reshape(8, 64)
    assert np.array_equal(three.read(3, 7), f16[3:7].astype(np.float32))
    bf16 = tensors["blk.0.ffn_up.weight"].read()
    assert np.array_equal(bf16.view(np.uint32).ravel() >> 16, raw["blk.0.ffn_up.weight"].view(np.uint16))
    blocks = raw["blk.0.ffn_down.weight"].reshape(4, 2, 34)
    assert np.array_equal(
        tensors["blk.0.ffn_down.weight"].read(),
        blocks[:, :, 2:].view(np.int8).reshape(4, 64) * np.float32(0.5),
    )
    assert tensors["output_norm.weight"].read().shape == (1, 64)


def test_what_is_float32_among_smaller_matrices_stays_it(tmp_path):
    w = np.ones((8, 64), np.float32)
    f32 = {name: (F32, w.shape, w) for name in ("token_embd.weight", "output.weight", "blk.0.new_op.weight")}
    f16 = {"blk.0.ffn_up.weight": (F16, w.shape, w.astype(np.float16))}
    with open_source(write_gguf(tmp_path / "f32.gguf", f32)) as source:
        assert [t.name for t in source.tensors if t.keeps_f32] == []
    with open_source(write_gguf(tmp_path / "mixed.gguf", f32 | f16)) as source:
        assert [t.name for t in source.tensors if t.keeps_f32] == ["blk.0.new_op.weight"]


def test_split_gguf(tmp_path):
    names = [tmp_path / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    for i, path in enumerate(names):
        metadata = METADATA if i == 0 else {}
        split = {
            "split.no": GGUFValue(i, GGUFValueType.UINT16),
            "split.count": GGUFValue(2, GGUFValueType.UINT16),
        }
        write_gguf(
            path, {f"w{i}.weight": (F32, (2, 8), np.full((2, 8), i, np.float32))}, {**metadata, **split}
        )
    source = open_source(names[0])
    assert [t.read()[0, 0] for t in source.tensors] == [0, 1]
    assert source.metadata == METADATA
    refused(names[1], "give the first")
    names[1].unlink()
    with pytest.raises(LutraError, match="00002-of-00002"):
        open_source(names[0])


def test_quantized_gguf_is_refused(tmp_path):
    path = write_gguf(tmp_path / "q.gguf", {"w.weight": (2, (1, 32), np.zeros(18, np.uint8))})
    refused(path, "'w.weight'", "Q4_0", "F16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(tmp_path, value):
    weights = np.zeros((4, 64), np.float32)
    weights[2, 5] = value
    refused(write_gguf(tmp_path / "a.gguf", {"w.weight": (F32, (4, 64), weights)}), "'w.weight'", "row 2")
    model = hf_model(tmp_path / "m")
    tensors = {t: read_hf(model, t).copy() for t in json.loads(_header(model)) if t != "__metadata__"}
    tensors["lm_head.weight"][5, 7] = value
    write_safetensors(model / "model.safetensors", tensors)
    refused(model, "'output.weight'", "row 5")


def test_nothing_there(tmp_path):
    with pytest.raises(LutraError, match="no such file"):
        open_source(tmp_path / "absent")
    refused(write_gguf(tmp_path / "v.gguf", {}), "no tensors")
    refused(write_gguf(tmp_path / "a.gguf", {"w": (F32, (8,), np.zeros(8, np.float32))}, {}), "architecture")


# ---- damaged Hugging Face directories --------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file(tmp_path, file):
    model = hf_model(tmp_path / "m")
    (model / file).unlink()
    refused(model, file)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100000])
def test_damaged_json(tmp_path, file, content):
    model = hf_model(tmp_path / "m")
    (model / file).write_bytes(content)
    refused(model, file)


def test_byte_order_marks(tmp_path):
    """Editors of another system put them in front of files."""
    model = hf_model(tmp_path / "m")
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    expected = plain(open_source(model))
    for path in (*model.glob("*.json"), model / "chat_template.jinja"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert plain(open_source(model)) == expected
    assert expected["tokenizer.chat_template"] == "{{ messages[0].content }}!"


def test_numbers_written_as_text(tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0}
    model = hf_model(tmp_path / "m", "MistralForCausalLM", bos_token_id=258, rope_scaling=rope)
    edit(model, "config.json", tie_word_embeddings=False, eos_token_id=[259])
    source = open_source(model)
    config = json.loads((model / "config.json").read_text())
    text = {key: str(v) if isinstance(v, int | float) else v for key, v in config.items()}
    text |= {"rope_scaling": rope | {"factor": "2.0"}, "eos_token_id": ["259"]}
    edit(model, "config.json", **text)
    found = open_source(model)
    assert plain(found) == plain(source)
    assert [t.name for t in found.tensors] == [t.name for t in source.tensors]


def test_a_pipe_is_no_model(tmp_path):
    """Nobody writes to it, so waiting would be for ever."""
    os.mkfifo(tmp_path / "model.gguf")
    refused(tmp_path / "model.gguf", "a pipe")


@pytest.mark.parametrize(
    ("file", "word"), [("config.json", "without architecture"), ("tokenizer.json", "tokenizer.json")]
)
def test_json_of_other_keys(tmp_path, file, word):
    model = hf_model(tmp_path / "m")
    (model / file).write_bytes(b'{"model": 3}')
    refused(model, word)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": 5}, ["not read directly"]),
        ({"architectures": [["LlamaForCausalLM"]]}, ["not read directly"]),
        ({"num_hidden_layers": 1 << 30}, ["layers"]),
        ({"num_hidden_layers": 2}, ["blk.1"]),
        ({"num_attention_heads": 0}, ["num_attention_heads"]),
        ({"hidden_size": "448 or so"}, ["hidden_size"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"intermediate_size": 1217}, ["shape", "mlp"]),
        ({"vocab_size": 265}, ["shape", "265"]),
        ({"num_key_value_heads": 2}, ["cannot share"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["longrope"]),
        ({"rope_scaling": {"rope_type": "yarn"}}, ["factor"]),
        ({"rope_scaling": 3}, ["rope"]),
    ],
)
def test_config_that_does_not_fit(tmp_path, changes, words):
    model = hf_model(tmp_path / "m")
    edit(model, "config.json", **changes)
    refused(model, *words)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -100])
def test_truncated_safetensors(tmp_path, keep):
    model = hf_model(tmp_path / "m")
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(model, "model.safetensors", "download it again")


def test_safetensors_headers(tmp_path):
    model = hf_model(tmp_path / "m")
    path = model / "model.safetensors"

    def header(text):
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(64))
        return model

    entry = '{"dtype": "%s", "shape": %s, "data_offsets": %s}'
    refused(header('{"a": %s, "a": %s}' % (2 * (entry % ("F32", "[2]", "[0, 8]"),))), "'a'", "twice")
    refused(header('{"a": %s}' % (entry % ("C64", "[1]", "[0, 8]"))), "'a'", "C64")
    refused(header('{"a": %s}' % (entry % ("F32", "[3]", "[0, 8]"))), "'a'", "8 bytes")
    refused(header('{"a": %s}' % (entry % ("F32", "[0]", "[0, 0]"))), "'a'", "no weights")
    refused(header('{"a": %s}' % (entry % ("F32", "[-1, -2]", "[0, 8]"))), "'a'", "damaged")
    refused(header('{"a": %s}' % (entry % ("F32", "[1e9]", "[0, 8]"))), "'a'", "damaged")
    refused(header('{"a": %s}' % (entry % ("F32", "[99999999999]", "[0, 399999999996]"))), "'a'", "lacks")
    refused(header('{"a": 5}'), "'a'", "damaged")
    refused(header('{"a": %s}' % (entry % ("F32", "[2]", "[0, 8]"))), "56 bytes follow the last tensor")
    refused(header('{"strange.weight": %s}' % (entry % ("F32", "[16]", "[0, 64]"))), "layers")
    path.write_bytes(struct.pack("<Q", 1 << 62) + bytes(64))
    refused(model, "truncated")


def test_tensor_of_another_model(tmp_path):
    model = hf_model(tmp_path / "m")
    tensors = {t: read_hf(model, t) for t in json.loads(_header(model)) if t != "__metadata__"}
    write_safetensors(model / "model.safetensors", {**tensors, "model.layers.0.odd.weight": np.ones((8, 8))})
    refused(model, "'model.layers.0.odd.weight'", "no part")


def test_index_of_shards(tmp_path):
    model = hf_model(tmp_path / "m", shards=2)
    index = model / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model-00001", "model-00009"))
    refused(model, "model-00009", "not there")
    index.write_text(text.replace("model-00001", "../m/model-00001"))
    refused(model, "not there")
    index.write_text(text.replace('"lm_head.weight"', '"absent.weight"'))
    refused(model, "absent.weight")
    index.write_text("{}")
    refused(model, "weight_map")


def test_unknown_pre_tokenizer(tmp_path):
    model = hf_model(tmp_path / "m")
    tokenizer, _ = byte_level_tokenizer(r"\w+|\W+")
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(model, "pre-tokenizer", r"\w+", 'pip install "lutra-llm[hf]"')


O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_the_pre_tokenizer_of_phi_4_mini(tmp_path):
    model = hf_model(tmp_path / "m", "Phi3ForCausalLM")
    (model / "tokenizer.json").write_text(json.dumps(byte_level_tokenizer(O200K)[0]))
    assert plain(open_source(model))["tokenizer.ggml.pre"] == "gpt-4o"


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], "gpt-2"),
        (
            [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
            "smollm",
        ),
    ],
)
def test_pre_tokenizers_without_expressions(tmp_path, steps, name):
    model = hf_model(tmp_path / "m")
    edit(model, "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    assert plain(open_source(model))["tokenizer.ggml.pre"] == name
    edit(model, "tokenizer.json", pre_tokenizer=steps[0])
    if len(steps) == 1:
        assert plain(open_source(model))["tokenizer.ggml.pre"] == name


def test_tokens_beyond_the_embedding(tmp_path):
    model = hf_model(tmp_path / "m")
    tokens = [{"id": 264, "content": "<x>", "special": True}]
    edit(model, "tokenizer.json", added_tokens=tokens)
    refused(model, "264")


def test_damaged_sentencepiece(tiny_chat):
    path = tiny_chat / "tokenizer.model"
    (tiny_chat / "tokenizer.json").unlink()
    data = path.read_bytes()
    for broken in (b"", b"\x00" * 50, data[:1000], b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 40):
        path.write_bytes(broken)
        refused(tiny_chat, "tokenizer.model")


@pytest.mark.parametrize("seed", range(3))
def test_mutations_give_only_lutra_errors(tmp_path, tiny_chat, seed):
    """Flipped bytes and cuts in any file of a directory: it is read, or LutraError says why not."""
    rng = random.Random(seed)
    models = [hf_model(tmp_path / "m"), hf_model(tmp_path / "l", "LlamaForCausalLM", shards=2), tiny_chat]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(60):
        path = rng.choice([p for p in rng.choice(models).iterdir() if p.is_file()])
        original = path.read_bytes()
        data = bytearray(original)
        span = min(len(data), rng.choice([100, 2000]))  # the header of a safetensors file
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(span)] = rng.choice([*b'"[]{},:09-', 0, 0xFF, rng.randrange(256)])
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            read_all(path.parent)
            outcomes["read"] += 1
        except LutraError:
            outcomes["refused"] += 1
        path.write_bytes(original)
    assert min(outcomes.values()) > 3, outcomes
