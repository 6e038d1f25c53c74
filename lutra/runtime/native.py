# SPDX-License-Identifier: MIT
"""ggml and llama.cpp in this process: our builds of their shared objects, through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib
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

_loading = threading.Lock()
# ggml_log_set keeps a pointer to it.
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """The shared object ``name`` ("ggml-base"). Raises LutraError when it is not built."""
    if name != "ggml-base":
        load("ggml-base")  # which all others need: ours, whatever else is in this process
    handle = ctypes.CDLL(str(lib_path(name)))
    if name == "ggml-base":
        handle.ggml_log_set(_SILENT, None)  # until log.py listens: what it loads does not matter to anybody
        crash.loaded(handle)
    return handle


def llama() -> Any:
    """llama-cpp-python's low-level bindings (its module llama_cpp.llama_cpp) on our libllama.

    The build took them from the same source package as llama.cpp and put them beside the library. Whoever
    has the package itself, too, imports it as usual, with the libllama of his choice. Raises
    LutraError when the bindings are missing or do not fit.
    """
    with _loading:
        return _bindings()


@functools.cache
def _bindings() -> ModuleType:
    load("llama")  # names what is missing before the bindings fail on it
    package = lib_dir() / "llama_cpp"
    if not package.is_dir():
        raise LutraError(f"{package}: no bindings for libllama; run 'pip install .' or set LUTRA_LIB_DIR")
    with _only("llama_cpp", package):
        # It would look for the library itself, and not on every system.
        finder: Any = importlib.import_module("llama_cpp._ctypes_extensions")
        finder.load_shared_library = lambda name, _: load(name)
        module = importlib.import_module("llama_cpp.llama_cpp")
    module.llama_backend_init()
    return module


@contextmanager
def _only(name: str, directory: Path) -> Iterator[None]:
    """Within, package ``name`` is what ``directory`` has; afterwards all is as before."""
    before = {key: sys.modules.pop(key) for key in _loaded(name)}
    package = ModuleType(name)
    package.__path__ = [str(directory)]
    sys.modules[name] = package
    try:
        yield
    finally:
        for key in _loaded(name):
            del sys.modules[key]
        sys.modules.update(before)


def _loaded(name: str) -> list[str]:
    return [key for key in sys.modules if key.partition(".")[0] == name]


@functools.cache
def load_backends() -> None:
    """Find the CPU backend of this machine where the backends are shared objects of their own."""
    load("ggml").ggml_backend_load_all_from_path(os.fsencode(lib_dir()))
