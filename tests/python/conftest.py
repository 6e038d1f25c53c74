# SPDX-License-Identifier: MIT
"""What several modules of tests need and what takes seconds to make."""

from __future__ import annotations

import pytest
from cli_runner import TINY_CHAT, lutra, require_built


@pytest.fixture(scope="session")
def tiny_chat_cb4(tmp_path_factory):
    """A file of tiny-chat as CB4, for llama-server."""
    require_built("llama-server")
    file = tmp_path_factory.mktemp("tiny-chat") / "tiny-chat-cb4.gguf"
    done = lutra("convert", TINY_CHAT, "--type", "cb4", "--no-calibration", "-o", file)
    assert done.returncode == 0, done.stderr
    return file


@pytest.fixture(scope="session")
def tiny_chat_f16(tmp_path_factory):
    """A file of tiny-chat as F16."""
    require_built()
    file = tmp_path_factory.mktemp("tiny-chat") / "f16.gguf"
    assert lutra("convert", TINY_CHAT, "--type", "f16", "-o", file).returncode == 0
    return file
