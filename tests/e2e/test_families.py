# SPDX-License-Identifier: MIT
"""What families say about matrices that share an input, against the graph that the runtime computes."""

from __future__ import annotations

import json

import pytest
from cli_runner import lutra, require_built
from gguf_samples import hf_model

from gguf_tools.sources.config import read_config
from gguf_tools.sources.families import BY_ARCHITECTURE
from lutra.conversion.calibrate import matmul_order


@pytest.mark.parametrize("architecture", BY_ARCHITECTURE)
def test_matrices_share_their_inputs_in_the_graph_too(tmp_path, architecture):
    require_built("llama-perplexity")
    family = BY_ARCHITECTURE[architecture]
    path = hf_model(tmp_path / "m", architecture) / "config.json"
    config = read_config(path, json.loads(path.read_text()), architecture, family.architectures[architecture])
    shared = [{f"blk.0.{name}.weight" for name in inputs.rows} for inputs in family.matrices(config)]
    model = tmp_path / "f16.gguf"
    done = lutra("convert", path.parent, "--type", "f16", "-o", model)
    assert done.returncode == 0, done.stderr
    groups = matmul_order(model, set().union(*shared), [1, 2, 3], threads=1)
    assert [set(group) for group in groups] == shared
