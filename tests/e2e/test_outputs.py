"""What a conversion does with its output's name, and what it leaves open."""

from __future__ import annotations

import pytest
from cli_runner import require_built
from gguf_samples import hf_model
from open_files import held

from gguf_tools.inspect import check
from lutra.conversion.options import ConversionOptions
from lutra.conversion.pipeline import convert


@pytest.mark.parametrize("kind", ["f16", "cb4", "q4_0"])
def test_a_link_stays_and_nothing_stays_open(tmp_path, kind):
    """The output is made where the link leads, by ourselves and by llama-quantize."""
    require_built("llama-quantize")
    model = hf_model(tmp_path / "m", "LlamaForCausalLM")
    link, disk = tmp_path / "here" / "o.gguf", tmp_path / "disk"
    for directory in (link.parent, disk):
        directory.mkdir()
    link.symlink_to(disk / "o.gguf")
    result = convert(model, ConversionOptions(kind, calibrate=False, threads=1), link)
    assert held(tmp_path) == []
    assert result.path == disk / "o.gguf"
    assert link.is_symlink()
    assert [*link.parent.iterdir(), *disk.iterdir()] == [link, result.path]
    assert check(result.path) == []
