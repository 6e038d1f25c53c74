# SPDX-License-Identifier: MIT
"""``lutra doctor``: what keeps this machine from more tokens per second."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import positive
from lutra.console import decimal_size, table
from lutra.runtime.threads import checked_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

EPILOG = """\
Looks at the processor, its clocks and heat under a few seconds of load, memory and its measured speed, and
the limits of containers. With FILE, also at how much of it is in memory, at its disk, and at a short run
beside what memory would allow. Then says what to change, the gravest first. The page cache stays as it is.

The exit code is 1 when something is broken, 0 when it is fine or only slow.
--report writes all of it as JSON to send along with a question, without names of host, user or paths.

examples:
  lutra doctor
  lutra doctor model-cb4.gguf --report report.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, nargs="?", help="GGUF file, or ORG/MODEL[:TYPE] of the hub")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add(
        "--report",
        nargs="?",
        const="-",
        metavar="OUT.json",
        help="write a report to send (default: print it)",
    )


def run(args: argparse.Namespace) -> int:
    """Examine, print, and say by the exit code whether something is broken."""
    from lutra.measure.doctor.report import examine, sendable

    if args.report and args.report != "-" and not args.report.endswith(".json"):
        raise LutraError(f"{args.report}: a report's name ends in .json, so that no model is overwritten")
    file = local_gguf(args.file) if args.file else None
    report = examine(file, threads=checked_threads(args.threads))
    if args.report:
        text = json.dumps(sendable(report), indent=1) + "\n"
        if args.report == "-":
            print(text, end="")
        else:
            Path(args.report).write_text(text)
    if args.report != "-":
        print(text_of(report, file))
    return int(any(finding["level"] == "broken" for finding in report["findings"]))


def text_of(report: dict[str, Any], file: Path | None) -> str:
    """The report for people."""
    rows = [row for row in (*machine_rows(report), *file_rows(report)) if row[1]]
    return f"{table(rows)}\n\n{findings_text(report, file)}"


def machine_rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of the machine: name and value, empty where it is not known."""
    cpu, clocks, memory = report["cpu"], report["clocks"], report["memory"]
    yield "CPU", cpu["name"]
    yield (
        "features",
        " ".join(cpu["features"]) + (f", SVE of {cpu['sve_bits']} bits" if cpu["sve_bits"] else ""),
    )
    sets = cpu["kernels"]
    if not sets.get("error"):
        yield (
            "kernel sets",
            ", ".join(f"{name} {' '.join(sets[name])}" for name in ("compiled", "supported", "chosen")),
        )
    quota = f", a quota of {cpu['quota_cpus']:.0f}" if cpu["quota_cpus"] is not None else ""
    yield "threads", f"{cpu['threads']} of {cpu['cpus']} CPUs, {cpu['allowed_cpus']} allowed{quota}"
    yield "governor", ", ".join(dict.fromkeys(p["governor"] for p in clocks["policies"] if p["governor"]))
    highest = max((policy["mhz_max"] or 0 for policy in clocks["policies"]), default=0)
    yield (
        "clock",
        change(clocks["mhz_rest"], clocks["mhz_load"], "MHz") + (f", at most {highest:.0f}" * bool(highest)),
    )
    yield "temperature", change(clocks["celsius_rest"], clocks["celsius_load"], "°C")
    if clocks["pi_throttled"] is not None:
        now, since = clocks["pi_throttled"]["now"], clocks["pi_throttled"]["since_start"]
        yield "firmware", f"now: {', '.join(now) or 'fine'}; since start: {', '.join(since) or 'fine'}"
    limit = f", limit {decimal_size(memory['limit_bytes'])}" if memory["limit_bytes"] else ""
    yield "memory", f"{decimal_size(memory['free_bytes'])} free of {decimal_size(memory['bytes'])}{limit}"
    if memory["swap_bytes"]:
        used, kinds = decimal_size(memory["swap_used_bytes"]), ", ".join(memory["swap_kinds"])
        yield "swap", f"{used} used of {decimal_size(memory['swap_bytes'])} ({kinds})"
    huge = f", transparent huge pages: {memory['huge_pages']}" if memory["huge_pages"] else ""
    yield "pages", f"{memory['page_bytes'] // 1024} KiB{huge}"
    if memory["gb_per_s"]:
        how = f"{memory['gb_per_s_threads']} threads; {memory['gb_per_s_method']}"
        yield "memory speed", f"{memory['gb_per_s']} GB/s ({how})"


def file_rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same of the file."""
    file = report["file"]
    if not file:
        return
    cached = "" if file["cached"] is None else f", {file['cached']:.0%} in memory"
    large = "" if file["large_pages"] is None else f", {file['large_pages']:.0%} of that in large pages"
    yield "file", f"{decimal_size(file['bytes'])}{cached}{large}"
    rate = f"{file['disk_mb_per_s']:.0f} MB/s past the cache" if file["disk_mb_per_s"] else ""
    yield "its disk", ", ".join(filter(None, (file["disk"], rate)))
    if speed := file["speed"]:
        if speed["expected_tps"]:
            per_token = (
                f"{report['memory']['gb_per_s']} GB/s / {file['bytes_per_token'] / 1e9:.3f} GB per token"
            )
            yield "memory allows", f"{speed['expected_tps']:.1f} tokens per second ({per_token})"
        share = f" ({speed['generation_tps'] / speed['expected_tps']:.0%})" if speed["expected_tps"] else ""
        yield (
            "measured",
            (
                f"{speed['generation_tps']:.1f} tokens per second{share}, {speed['generated']} tokens; "
                f"a prompt of {speed['prompt']}: {speed['prompt_tps']:.1f}"
            ),
        )


def findings_text(report: dict[str, Any], file: Path | None) -> str:
    """What to change, numbered."""
    from lutra.measure.doctor.advice import FILE

    if not report["findings"]:
        return "Nothing to change."
    lines = []
    for number, finding in enumerate(report["findings"], 1):
        lines.append(f"{number}. {finding['level']}: {finding['what']}")
        lines.append(f"   {finding['why']}")
        if finding["fix"]:
            path = shlex.quote(str(file)) if file else FILE
            lines.append(f"   $ {finding['fix'].replace(FILE, path)}")
    return "\n".join(lines)


def change(rest: float | None, load: float | None, unit: str) -> str:
    """A value at rest and under load."""
    if rest is None or load is None:
        return ""
    return f"{rest:.0f} {unit} at rest, {load:.0f} under load"
