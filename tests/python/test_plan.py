# SPDX-License-Identifier: MIT
"""Which type each tensor gets."""

from __future__ import annotations

import pytest
from plan_samples import asked, tensor

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import TYPES
from gguf_tools.sources.tensors import SourceTensor
from lutra.conversion.plan import Rules, describe, parse_tensor_type, plan, tensor_type

EMBEDDING = tensor("token_embd.weight", 4096, 256)
OUTPUT = tensor("output.weight", 4096, 256)
UP = tensor("blk.0.ffn_up.weight", 512, 256)


def types(tensors: list[SourceTensor], rules: Rules) -> list[str]:
    return [p.type_name for p in plan(tensors, rules)]


def test_recipe_gives_embeddings_and_output_more_bits():
    assert types([EMBEDDING, OUTPUT, UP], asked("cb2")) == ["CB4", "CB4", "CB2"]
    assert types([EMBEDDING, OUTPUT, UP], asked("cb25")) == ["CB4", "CB4", "CB25"]
    assert types([EMBEDDING, OUTPUT, UP], asked("cb4")) == ["CB6", "CB6", "CB4"]
    assert types([EMBEDDING, OUTPUT, UP], asked("cb5")) == ["CB6", "CB6", "CB5"]
    assert types([EMBEDDING, OUTPUT, UP], asked("cb6")) == ["CB6", "CB6", "CB6"]
    assert types([tensor("output.weight", 4096, 448)], asked("cb4")) == ["CB6_64"]
    assert types([EMBEDDING, OUTPUT, UP], asked("cb2", pure=True)) == ["CB2", "CB2", "CB2"]


def test_mixes_give_more_to_values_embeddings_and_the_first_layer():
    tensors = [
        EMBEDDING,
        OUTPUT,
        *(
            tensor(f"blk.{i}.{role}.weight", 512, 256)
            for i in (0, 10)
            for role in ("attn_v", "attn_q", "ffn_up")
        ),
    ]
    for mix, base, step, better in (
        ("cb2_m", "CB2", "CB3", "CB4"),
        ("cb3_m", "CB3", "CB4", "CB4"),
        ("cb25_m", "CB25", "CB3", "CB4"),
        ("cb4_m", "CB4", "CB5", "CB6"),
    ):
        assert types(tensors, asked(mix)) == [step, better, better, step, step, better, base, base]
        assert types(tensors[:1], asked(mix, "token=q8_0")) == ["Q8_0"]
    assert types([tensor("blk.0.attn_v.weight", 512, 448)], asked("cb4_m")) == ["CB6_64"]
    fused = [tensor(f"blk.1.attn_{x}.weight", 512, 256) for x in ("qkv", "kv_b", "v_b", "k_b")]
    assert types(fused, asked("cb2_m")) == ["CB3", "CB3", "CB4", "CB2"]


def test_precedence_is_llama_quantizes():
    rules = asked("cb3", "token_embd=q8_0", "ffn=f16", "ffn_up=q4_0")
    assert types([EMBEDDING, OUTPUT, UP], rules) == ["Q8_0", "CB4", "F16"]
    rules = asked("cb3", "weight=q8_0", output_type="q6_k", embedding_type="cb2")
    assert types([EMBEDDING, OUTPUT, UP], rules) == ["CB2", "Q6_K", "Q8_0"]


def test_a_tied_embedding_is_the_output_too():
    assert types([EMBEDDING, UP], asked("cb3", output_type="q8_0")) == ["Q8_0", "CB3"]
    assert types([EMBEDDING, UP], asked("cb3", output_type="q8_0", embedding_type="f16")) == ["F16", "CB3"]


def test_what_is_no_matrix_of_products_stays_f32():
    kept = [
        tensor("blk.0.attn_norm.weight", 256),
        tensor("blk.0.attn_q.bias", 256),
        tensor("blk.0.time_mix_lerp_w.weight", 1, 1, 256),
        tensor("blk.0.ffn_gate_inp.weight", 8, 256),
        tensor("blk.0.ffn_gate_inp_shexp.weight", 1, 256),
        tensor("blk.0.ssm_norm.weight", 8, 256),
        tensor("blk.0.ssm_a", 512, 256),
        tensor("blk.0.ssm_conv1d.weight", 512, 4),
        tensor("blk.0.ssm_conv1d_q.weight", 512, 1, 4),
        tensor("blk.0.shortconv.conv.weight", 512, 3),
        tensor("position_embd.weight", 512, 256),
        tensor("token_types.weight", 16, 256),
        tensor("blk.0.altup_correct_coef.weight", 4, 4),
        tensor("blk.0.altup_predict_coef.weight", 16, 4),
        tensor("blk.0.time_mix_decay_w1.weight", 64, 256),
        tensor("blk.0.indexer.proj.weight", 64, 256),
    ]
    assert types(kept, asked("cb4", ".=q8_0")) == ["F32"] * len(kept)
    others = ["shortconv.in_proj", "ssm_in", "ssm_x", "time_mix_key", "indexer.attn_q_b"]
    assert types([tensor(f"blk.0.{name}.weight", 512, 256) for name in others], asked("cb4")) == ["CB4"] * 5


def test_small_matrices_around_the_stream_are_not_quantized():
    names = ["altup_proj", "altup_unembd_proj", "per_layer_model_proj", "blk.0.laurel_l", "blk.3.laurel_r"]
    tensors = [tensor(f"{name}.weight", 512, 256) for name in names]
    for kind in ("cb2", "cb4", "cb3_m"):
        assert types(tensors, asked(kind)) == ["F16"] * 5
    assert types(tensors, asked("cb3", "laurel=q8_0")) == ["F16"] * 3 + ["Q8_0"] * 2
    assert types([tensor("per_layer_token_embd.weight", 512, 256)], asked("cb3")) == ["CB3"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((512, 256), "CB4"),
        ((512, 448), "CB4_64"),
        ((512, 96), "Q8_0"),  # rows of 64s only
        ((508, 256), "Q8_0"),  # strips of 8 rows
        ((8, 256), "Q8_0"),  # the library would be larger than the rows
        ((512, 100), "F16"),
        ((4, 512, 256), "CB4"),
        ((4, 12, 256), "Q8_0"),  # strips must not cross experts, though 48 rows are whole strips
    ],
)
def test_shapes_decide(shape, expected):
    (planned,) = plan([tensor("blk.0.x.weight", *shape)], asked("cb4"))
    assert planned.type_name == expected
    assert (planned.fmt is not None) == expected.startswith("CB4")
    assert planned.instead_of is (None if planned.fmt else TYPES["cb4"])


def test_stock_types_fall_back_by_their_block():
    assert types([tensor("x.weight", 512, 96)], asked("cb4", "x=q4_k")) == ["Q8_0"]


def test_description_adds_up():
    text = describe(plan([EMBEDDING, UP], asked("cb3")), threads=2)
    assert "token_embd.weight" in text
    assert "2 tensors, 1.2 M weights" in text
    assert "100.0% of the weights in codebooks" in text


def test_wrong_types_and_patterns_are_named():
    assert tensor_type("CB4").name == "cb4"
    pattern, kind = parse_tensor_type("a=b=cb2")
    assert (pattern.pattern, kind.name) == ("a=b", "cb2")
    for wrong, fragment in (("ffn", "REGEX=TYPE"), ("=cb4", "REGEX=TYPE"), ("(=cb4", "regular expression"),
                            ("ffn=cb9", "'cb9'")):  # fmt: skip
        with pytest.raises(LutraError, match=fragment):
            parse_tensor_type(wrong)
