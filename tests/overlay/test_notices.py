# SPDX-License-Identifier: MIT
"""Licence notices: of every component of llama.cpp, and in the package that ships them compiled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from fetch_sdist import read_source
from notices import NoticeError, components, notices

from lutra.runtime.paths import lib_dir

ROOT = Path(__file__).resolve().parents[2]
MIT = b"Permission is hereby granted, free of charge, to anyone\n"
HEADER = b"/* Copyright (c) 2020 A. Uthor. Permission is hereby granted */\nint x; // not this\n"


def upstream() -> dict[str, bytes]:
    """A llama.cpp with a component whose licence is a file, one whose licence is a comment, and a wrapper."""
    return {
        "LICENSE": b"Copyright llama.cpp. " + MIT,
        "src/llama.cpp": b"int y;\n// Copyright 2024 B. Orrowed\n// of the MIT License\nint z;\n",
        "vendor/CMakeLists.txt": b"",
        "vendor/a/LICENSE.md": MIT,
        "vendor/a/a.h": b"int a;\n",
        "vendor/b/b.h": HEADER,
        "vendor/w/w.cpp": b"int wrapper;\n",
        "vendor/w/c/c.c": b"/* Public Domain */\n",
    }


def test_every_component_has_its_notice() -> None:
    assert notices(upstream()) == {
        "llama.cpp": b"==== LICENSE\n\nCopyright llama.cpp. " + MIT + b"\n==== src/llama.cpp\n\n"
        b"// Copyright 2024 B. Orrowed\n// of the MIT License\n",
        "a": b"==== vendor/a/LICENSE.md\n\n" + MIT,
        "b": b"==== vendor/b/b.h\n\n" + HEADER.splitlines(keepends=True)[0],
        "w-c": b"==== vendor/w/c/c.c\n\n/* Public Domain */\n",
    }


def test_the_bindings_have_theirs() -> None:
    files = upstream() | {"bindings/LICENSE.md": MIT, "bindings/llama_cpp.py": b""}
    assert notices(files)["llama-cpp-python"] == b"==== bindings/LICENSE.md\n\n" + MIT


def test_files_belong_to_the_innermost_component() -> None:
    assert components(upstream())["llama.cpp"] == [
        "LICENSE",
        "src/llama.cpp",
        "vendor/CMakeLists.txt",
        "vendor/w/w.cpp",
    ]


@pytest.mark.parametrize("text", [b"int x;\n", b"// SPDX-License-Identifier: MIT\n// Copyright 2026 N. Ew\n"])
def test_a_component_without_a_licence_is_refused(text: bytes) -> None:
    with pytest.raises(NoticeError, match=r"^new \(in vendor/\) has no licence notice: name the file"):
        notices(upstream() | {"vendor/new/new.h": text})


def test_a_licence_file_elsewhere_is_found() -> None:
    files = upstream() | {"vendor/nlohmann/json.hpp": b"int j;\n", "licenses/LICENSE-jsonhpp": MIT}
    assert notices(files)["nlohmann"] == b"==== licenses/LICENSE-jsonhpp\n\n" + MIT


# ---- the package ---------------------------------------------------------------------------------


def source() -> Path:
    """The llama.cpp that the libraries at hand were made of: what the build was given, or has downloaded."""
    given = os.environ.get("LUTRA_LLAMA_SOURCE")
    found = [Path(given)] if given else sorted(ROOT.glob("build/*/sdist/*.tar.gz"))
    if not found:
        pytest.skip("no llama.cpp: set LUTRA_LLAMA_SOURCE, or build Lutra first")
    return found[0]


def test_the_package_has_the_notice_of_everything_compiled_in() -> None:
    if not lib_dir().is_dir():
        pytest.skip("the libraries are not built: set LUTRA_LIB_DIR")
    installed, built = lib_dir().parent / "licenses", lib_dir().parent / "llama.cpp/notices"
    directory = built if built.is_dir() else installed
    wanted = notices(read_source(source()))
    assert sorted(p.stem for p in directory.glob("*.txt")) == sorted(wanted)
    for component, text in wanted.items():
        assert (directory / f"{component}.txt").read_bytes() == text
    for component, holder in {
        "llama.cpp": b"The ggml authors",
        "cpp-httplib": b"yhirose",
        "nlohmann": b"Niels Lohmann",
        "stb": b"Sean Barrett",
        "miniaudio": b"David Reid",
        "hash-xxhash": b"Yann Collet",
    }.items():
        assert holder in wanted[component]
    assert b"Mozilla Foundation" in wanted["llama.cpp"]
