# SPDX-License-Identifier: MIT
"""ggml and llama.cpp in this process: our builds of their shared objects, through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gguf_tools.errors import LutraError
from lutra.runtime import crash
from lutra.runtime.paths import lib_dir, lib_path

_LIB_PATH = "LLAMA_CPP_LIB_PATH"  # where the bindings look for libllama
_loading = threading.Lock()


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """The shared object ``name`` ("ggml-base"). Raises LutraError when it is not built."""
    if name != "ggml-base":
        load("ggml-base")  # which all others need: ours, whatever else is in this process
    handle = ctypes.CDLL(str(lib_path(name)))
    if name == "ggml-base":
        crash.loaded(handle)
    return handle


def llama() -> Any:
    """llama-cpp-python's low-level bindings (its module llama_cpp.llama_cpp) on our libllama.

    A copy of our own: the package itself would import numpy and a disk cache, which cost more memory than a
    small model, and whoever imports it in this process gets it as usual, with the libllama of his choice.
    Raises LutraError when the bindings are missing or do not fit.
    """
    with _loading:
        return _bindings()


@functools.cache
def _bindings() -> ModuleType:
    load("llama")  # names what is missing before the bindings fail on it
    found = importlib.util.find_spec("llama_cpp")
    if found is None or not found.submodule_search_locations:
        raise LutraError("the package llama-cpp-python is missing; run 'pip install .'")
    package = Path(found.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("lutra.runtime._llama_cpp", package / "llama_cpp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _hollow_package("llama_cpp", package), _environment(_LIB_PATH, str(lib_dir())):
        spec.loader.exec_module(module)
    module.llama_backend_init()
    return module


@contextmanager
def _hollow_package(name: str, directory: Path) -> Iterator[None]:
    """Let submodules of ``name`` be imported without running its __init__; no trace of it stays."""
    if name in sys.modules:
        yield
        return
    package = ModuleType(name)
    package.__path__ = [str(directory)]
    sys.modules[name] = package
    try:
        yield
    finally:
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@functools.cache
def load_backends() -> None:
    """Find the CPU backend of this machine where the backends are shared objects of their own."""
    load("ggml").ggml_backend_load_all_from_path(os.fsencode(lib_dir()))
