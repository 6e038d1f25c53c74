#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Moves the overlay to another release of llama-cpp-python: `scripts/bump_llama.py 0.3.37`.

Downloads the release, says which edited files have changed since the locked one, tries every edit,
and if every anchor still matches exactly once, in the definition that its edit names, rewrites the
lock file. Otherwise it lists the edits to repair and leaves the lock file as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fetch_sdist import FetchError, pip_download, prepare, read_source
from notices import NoticeError
from overlay import LOCK, Lock, OverlayError, drift, file_hashes, sha256


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="release of llama-cpp-python to move to")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/sdist"), help="keeps the sdist (default: %(default)s)"
    )
    parser.add_argument(
        "--lock", type=Path, default=LOCK, help="lock file to rewrite (default: the overlay's)"
    )
    args = parser.parse_args()

    old = Lock.read(args.lock)
    args.cache.mkdir(parents=True, exist_ok=True)
    sdist = args.cache / f"{old.package.replace('-', '_')}-{args.version}.tar.gz"
    try:
        if not sdist.exists():
            pip_download(old.package, args.version, sdist)
        files = read_source(sdist)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    changed = drift(files, old)
    print(f"{old.version} -> {args.version}: {len(changed)} of {len(old.files)} edited files have changed")
    for name in changed:
        print(f"  {name}")
    try:
        prepare(files)
    except OverlayError as error:
        print(f"error: edits to repair in cpu_kernels/overlay:\n{error}", file=sys.stderr)
        return 1
    except NoticeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Lock(old.package, args.version, sha256(sdist.read_bytes()), file_hashes(files)).write(args.lock)
    print(f"all anchors match, each in its place; {args.lock.name} is rewritten")
    print("next: the dependency in pyproject.toml, then scripts/test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
