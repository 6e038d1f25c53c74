# SPDX-License-Identifier: MIT
"""An editable installation: the sources, with the libraries and tools compiled for them."""

import os
import sys
from pathlib import Path

for _name in ("lib", "bin", "converter"):
    os.environ.setdefault(f"LUTRA_{_name.upper()}_DIR", str(Path(__file__).parent / _name))

import lutra  # noqa: E402 - which looks for them there

sys.modules[__name__] = lutra
