#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The end of scripts/test: a line per part, a sum, build/test-times.json; exit code 1 if a part failed.

test_report.py PARTS JSON SECONDS [XML...]

PARTS has a line per part, separated by tabs: name, "passed", "FAILED" or "left out", seconds, reason; SECONDS
are those of all. XML are pytest's reports (--junitxml); a part counts as one test more. A part that is left
out fails with CI=true or LUTRA_STRICT=1.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

STRICT = os.environ.get("CI") == "true" or os.environ.get("LUTRA_STRICT") == "1"


def pytest_counts(report: Path) -> Counter[str]:
    """Tests that passed, failed and were skipped."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    return Counter(passed=int(suite.get("tests", 0)) - failed - skipped, failed=failed, skipped=skipped)


def main(parts_file: str, times: str, whole: str, *reports: str) -> int:
    """Print and write; 1 if a part failed."""
    parts = [line.split("\t") for line in Path(parts_file).read_text().splitlines()]
    counts: Counter[str] = Counter()
    failed = False
    print("\n== summary")
    for name, result, seconds, reason in parts:
        if result == "left out" and STRICT:
            result = "FAILED"
        failed |= result == "FAILED"
        print(f"{name:<34} {result:<8} {seconds:>5} s  {reason and 'left out: ' + reason}".rstrip())
        counts[{"passed": "passed", "FAILED": "failed"}.get(result, "skipped")] += 1
    for report in map(Path, reports):
        if report.exists():
            counts += pytest_counts(report)
    seconds_of = {name: int(seconds) for name, _, seconds, _ in parts} | {"all": int(whole)}
    Path(times).write_text(json.dumps(seconds_of, indent=1) + "\n")
    print(f"{'FAILED' if failed else 'all passed'} in {whole} s")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
