# SPDX-License-Identifier: MIT
"""``python -m lutra``: the same as the command ``lutra``."""

from lutra.cli.main import main

raise SystemExit(main())
