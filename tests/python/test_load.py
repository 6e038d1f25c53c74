# SPDX-License-Identifier: MIT
"""``lutra serve`` under the load of scripts/load_test.py, in its shorter form."""

from __future__ import annotations

import re
import subprocess
import sys

from cli_runner import ROOT, environment


def test_careless_and_hostile_clients_do_no_harm(tiny_chat_cb4):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/load_test.py", tiny_chat_cb4, "--requests", "240"],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^ +216  requests of 8 clients in \d+ s$", done.stdout, re.MULTILINE)
    assert "readers that leave" in done.stdout
    assert "too large" in done.stdout
