# SPDX-License-Identifier: MIT
"""What macOS says of the machine; it has no /proc and no /sys."""

from __future__ import annotations

import subprocess
import sys

_SYSCTL = "/usr/sbin/sysctl"


def sysctl(name: str) -> str:
    """A value of the system; empty where it has none of that name, and on every other system."""
    if sys.platform != "darwin":
        return ""
    done = subprocess.run([_SYSCTL, "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()
