# SPDX-License-Identifier: MIT
"""GGUF files that are quantized already as sources: with --allow-requantize, and never without a word."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from cli_runner import TINY_CHAT, assert_error, lutra, require_built
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import METADATA, write_gguf

from gguf_tools.errors import LutraError
from gguf_tools.inspect import read_info
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import open_source
from lutra.conversion.options import OPTIONS_KEY

GOOD = ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0")
QUANTIZED = [kind for kind in gguf.quants._type_traits if kind.name not in GOOD]


def model_of(path, kind, architecture="llama"):
    """A matrix of 4 x 512 random weights."""
    weights = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        data = gguf.quants.quantize(weights, kind)
    except NotImplementedError:  # bytes below 60 are small scales in every type
        data = np.random.default_rng(0).integers(0, 60, (4, 512 // block * nbytes), np.uint8)
    metadata = METADATA | {"general.architecture": GGUFValue(architecture, GGUFValueType.STRING)}
    return write_gguf(path, {"blk.0.ffn_up.weight": (kind, (4, 512), data)}, metadata), data


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_every_type_is_read_if_it_may_be(tmp_path, kind):
    path, data = model_of(tmp_path / "m.gguf", kind)
    with pytest.raises(LutraError, match=f"is {kind.name}, already quantized.*--allow-requantize"):
        open_source(path)
    with open_source(path, requantize=True) as source:
        (tensor,) = source.tensors
        assert (tensor.dtype, tensor.shape) == (kind.name, (4, 512))
        assert np.array_equal(tensor.read(), gguf.quants.dequantize(data, kind))
        assert np.array_equal(tensor.read(1, 3), tensor.read()[1:3])


def test_gpt_oss_is_published_in_mxfp4(tmp_path):
    path, data = model_of(tmp_path / "m.gguf", Q.MXFP4, "gpt-oss")
    with open_source(path) as source:
        assert np.array_equal(source.tensors[0].read(), gguf.quants.dequantize(data, Q.MXFP4))
    path, _ = model_of(tmp_path / "q.gguf", Q.Q4_0, "gpt-oss")
    with pytest.raises(LutraError, match="is Q4_0, already quantized"):
        open_source(path)


def converted(source, kind, output, *options):
    done = lutra("convert", source, "--type", kind, "-o", output, "--no-calibration", *options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_command_line(tmp_path):
    """From a type of llama.cpp's to one of ours, and back."""
    require_built("llama-quantize")
    for kind, other in (("q4_0", "cb3"), ("cb4", "q5_0")):
        source, output = tmp_path / f"{kind}.gguf", tmp_path / f"{other}.gguf"
        converted(TINY_CHAT, kind, source)
        assert_error(lutra("convert", source, "--type", other), "--allow-requantize")
        said = converted(source, other, output, "--allow-requantize")
        assert said.count("is quantized already") == 1, said
        with GGUFFile(output) as file:
            assert "--allow-requantize" in file.get(OPTIONS_KEY)
        tensors = read_info(output).to_json()["tensors"]
        assert any(tensor["type"].startswith(other.upper()) for tensor in tensors)
        assert difference(output, TINY_CHAT) < 0.4


def difference(file, original):
    """Between the weights of two models, relative to those of the second: 1 and more if they are noise."""
    with open_source(file, requantize=True) as found, open_source(original) as source:
        weights = {t.name: t.read() for t in source.tensors}
        norm = np.linalg.norm
        return max(norm(t.read() - weights[t.name]) / norm(weights[t.name]) for t in found.tensors)


def test_no_word_where_nothing_is_lost(tmp_path):
    require_built("llama-quantize")
    converted(TINY_CHAT, "q8_0", tmp_path / "m.gguf")
    said = converted(tmp_path / "m.gguf", "q4_0", tmp_path / "n.gguf")
    assert "quantized already" not in said
