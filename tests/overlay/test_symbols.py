# SPDX-License-Identifier: MIT
"""What the built libraries show to each other."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from lutra.runtime.paths import lib_dir


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="needs Linux and binutils")
@pytest.mark.skipif(not (lib_dir() / "libllama.so").is_file(), reason="Lutra is not built")
def test_instances_of_std_stay_in_their_library():
    """A regex of one C++ runtime, destroyed by another, ended llama-bench."""
    for library in sorted(lib_dir().glob("lib*.so")):
        command = ["nm", "-D", "--defined-only", "--format=just-symbols", str(library)]
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert [s for s in symbols if s.startswith(("_ZSt", "_ZNSt", "_ZNKSt", "_ZTVSt", "_ZTVNSt"))] == [], (
            library
        )
