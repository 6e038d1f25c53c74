# SPDX-License-Identifier: MIT
"""The reason of a tool that failed, out of what it printed."""

from __future__ import annotations

import pytest

from lutra.runtime.tools import failure


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("loading\nlutra: error: worker 1.2.3.4:5 is lost\n", "worker 1.2.3.4:5 is lost"),
        # a logging thread had written the beginning of a line
        (
            "0.01.123 I srv  lutra: error: worker 1.2.3.4:5 is lost\n log_server: done\n",
            "worker 1.2.3.4:5 is lost",
        ),
        ("/src/ggml/ggml.c:12: GGML_ASSERT(a == b) failed\n", "ggml.c:12: GGML_ASSERT(a == b) failed"),
        ("0.02.456 E model: not a GGUF file\nfailed\n", "model: not a GGUF file"),
        ("llama_model_load: error loading model: no such tensor\n", "error loading model: no such tensor"),
        ("nothing of use\n", "ended with code 3"),
    ],
)
def test_reason(output, reason):
    assert failure(output, 3) == reason
