# SPDX-License-Identifier: MIT
"""``lutra convert --codebook bipolar``: no text, no learning, and what that cannot be combined with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cli_runner import TINY_CHAT, lutra
from gguf_samples import hf_model

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.open import open_source
from lutra.conversion.options import OPTIONS_KEY, ConversionOptions
from lutra.conversion.pipeline import convert
from pyquant.bipolar import libraries


@pytest.mark.parametrize(
    ("wrong", "fragment"),
    [
        ({"codebook": "random"}, "--codebook random: choose one of learned, bipolar"),
        ({"imatrix": "i"}, "--codebook bipolar learns nothing, --imatrix"),
        ({"calibration": "self"}, "--codebook bipolar learns nothing, --calibration"),
        ({"tune": True}, "--codebook bipolar learns nothing, --tune"),
        ({"type": "f16"}, "--codebook bipolar needs a --type of codebooks"),
        ({"tensor_types": ("ffn=cb25",)}, "cb25 has no whole bits per weight"),
    ],
)
def test_what_contradicts_itself(wrong, fragment):
    sound = ConversionOptions(type="cb4", codebook="bipolar")
    assert sound.calibration_text is None
    with pytest.raises(LutraError, match=fragment):
        dataclasses.replace(sound, **wrong)


@pytest.mark.parametrize(("kind", "snr"), [("cb2", 9), ("cb3", 14), ("cb4", 20), ("cb5", 26), ("cb6", 31)])
def test_a_file_has_these_tables_and_says_so(tmp_path, kind, snr):
    model = hf_model(tmp_path / "model", "LlamaForCausalLM", hidden_size=256, num_attention_heads=4)
    out = tmp_path / "out.gguf"
    convert(model, ConversionOptions(type=kind, codebook="bipolar", pure=True), out)
    with GGUFFile(out) as file, open_source(model) as source:
        assert "--codebook bipolar" in file.get(OPTIONS_KEY)
        assert "lutra.convert.uncalibrated" not in file.metadata
        originals = {tensor.name: tensor for tensor in source.tensors}
        found = [info for info in file.tensors.values() if info.type in CB_FORMATS]
        assert found
        for info in found:
            fmt, (rows, k) = CB_FORMATS[info.type], info.shape
            library = np.concatenate([of_layer.reshape(-1) for of_layer in libraries(fmt)])
            assert np.array_equal(codebook.split(file.data(info), fmt).library.view(np.int8), library)
            w = originals[info.name].read()
            error = codebook.dequantize(file.data(info), rows, k, fmt) - w
            assert (error**2).sum() < 10 ** (-snr / 10) * (w**2).sum()


def test_the_command_line(tmp_path):
    """From a model to an answer."""
    out = tmp_path / "out.gguf"
    done = lutra("convert", TINY_CHAT, "--type", "cb4", "--codebook", "bipolar", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "calibrat" not in done.stderr
    done = lutra("chat", out, "-p", "What is the capital of France?")
    assert (done.returncode, "Paris" in done.stdout) == (0, True), done
