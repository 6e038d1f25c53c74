# SPDX-License-Identifier: MIT
"""What a conversion does with its output's name, and what it leaves open."""

from __future__ import annotations

import pytest
from cli_runner import require_built
from gguf_samples import hf_model
from open_files import held

from gguf_tools.inspect import check
from lutra.conversion.options import ConversionOptions
from lutra.conversion.pipeline import convert


@pytest.mark.parametrize(
    ("kind", "calibrated"), [("f16", False), ("cb4", False), ("cb4", True), ("q4_0", False)]
)
def test_a_link_stays_and_nothing_stays_open(tmp_path, kind, calibrated):
    """The output is made where the link leads, by ourselves and by llama-quantize."""
    require_built("llama-quantize")
    model = hf_model(tmp_path / "m", "LlamaForCausalLM")
    link, disk = tmp_path / "here" / "o.gguf", tmp_path / "disk"
    for directory in (link.parent, disk):
        directory.mkdir()
    link.symlink_to(disk / "o.gguf")
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat, and the dog on the log. " * 20)
    calibration = text if calibrated else None
    options = ConversionOptions(kind, calibration=calibration, calibrate=calibrated, threads=1)
    result = convert(model, options, link)
    assert held(tmp_path) == []
    assert result.path == disk / "o.gguf"
    assert link.is_symlink()
    assert [*link.parent.iterdir(), *disk.iterdir()] == [link, result.path]
    assert check(result.path) == []
