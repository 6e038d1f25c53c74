# SPDX-License-Identifier: MIT
"""Trying a model in a child process: what it says, and that only lutra is in it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cli_runner import environment, require_built
from gguf_samples import sample_gguf

from gguf_tools.errors import LutraError
from lutra.runtime.probe import require_loadable


@pytest.fixture
def no_model(tmp_path):
    """A GGUF that says too little of its model, in a directory whose name is no text."""
    require_built()
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    return sample_gguf(directory / "sample.gguf")


def test_the_reason_of_the_child(no_model, tmp_path):
    with pytest.raises(LutraError) as caught:
        require_loadable(no_model)
    assert str(caught.value).startswith(f"{no_model}: ")
    assert "model hyperparameters" in str(caught.value)
    with pytest.raises(LutraError, match="no such file"):
        require_loadable(tmp_path / "missing.gguf")


def test_modules_of_the_current_directory_are_not_run(no_model, tmp_path, monkeypatch):
    for name in ("lutra", "ctypes", "re"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LutraError, match="model hyperparameters"):
        require_loadable(no_model)


def test_it_does_not_import_what_it_does_not_need():
    code = "import sys, lutra.runtime.probe_child; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"numpy", "jinja2", "gguf", "llama_cpp"} & set(done.stdout.split())
