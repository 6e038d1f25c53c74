"""``python -m lutra``: the same as the command ``lutra``."""

from lutra.cli import main

raise SystemExit(main())
