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
    assert types([EMBEDDING, OUTPUT, UP], asked("cb4")) == ["Q6_K", "Q6_K", "CB4"]
    assert types([tensor("output.weight", 4096, 448)], asked("cb4")) == ["CB4_64"]  # Q6_K needs 256s
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
        ("cb4_m", "CB4", "Q5_K", "Q6_K"),
    ):
        assert types(tensors, asked(mix)) == [step, better, better, step, step, better, base, base]
        assert types(tensors[:1], asked(mix, "token=q8_0")) == ["Q8_0"]
    assert types([tensor("blk.0.attn_v.weight", 512, 448)], asked("cb4_m")) == ["CB4_64"]  # Q6_K needs 256s


def test_precedence_is_llama_quantizes():
    rules = asked("cb3", "token_embd=q8_0", "ffn=f16", "ffn_up=q4_0")
    assert types([EMBEDDING, OUTPUT, UP], rules) == ["Q8_0", "CB4", "F16"]
    rules = asked("cb3", "weight=q8_0", output_type="q6_k", embedding_type="cb2")
    assert types([EMBEDDING, OUTPUT, UP], rules) == ["CB2", "Q6_K", "Q8_0"]


def test_a_tied_embedding_is_the_output_too():
    assert types([EMBEDDING, UP], asked("cb3", output_type="q8_0")) == ["Q8_0", "CB3"]
    assert types([EMBEDDING, UP], asked("cb3", output_type="q8_0", embedding_type="f16")) == ["F16", "CB3"]


def test_vectors_norms_and_routers_stay_f32():
    kept = [
        tensor("blk.0.attn_norm.weight", 256),
        tensor("blk.0.attn_q.bias", 256),
        tensor("blk.0.ffn_gate_inp.weight", 8, 256),
    ]
    assert types(kept, asked("cb4", ".=q8_0")) == ["F32"] * 3


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
