# SPDX-License-Identifier: MIT
"""``lutra info``: what this machine can do, and what is in a file."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.sources.hub import local_gguf
from lutra import __version__
from lutra.cli.arguments import FORCED
from lutra.console import mib, table
from lutra.runtime import kernels
from lutra.runtime.paths import CALIBRATION_TEXT, lib_dir

if TYPE_CHECKING:
    from gguf_tools.inspect import FileInfo

EPILOG = """\
Without FILE: the kernels of this build, which of them this CPU supports, and which run. LUTRA_KERNELS=SET
in the environment takes a lower set (ref is the reference). LUTRA_PLANES=1 or 2 gives all activations so many
planes of int8, as --planes of chat, serve, eval and bench does; LUTRA_LAYERS=1 is their --layers 1.
With FILE: its size, metadata and tensors.

examples:
  lutra info
  lutra info model-cb4.gguf --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="GGUF file")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Describe the file, or this machine."""
    if args.file:
        from gguf_tools.inspect import read_info

        info = read_info(local_gguf(args.file))
        print(json.dumps(file_json(info)) if args.json else file_text(info))
    else:
        machine = machine_json()
        print(json.dumps(machine) if args.json else machine_text(machine))
    return 0


# ---- the machine ---------------------------------------------------------------------------


def machine_json() -> dict[str, Any]:
    """Version, CPU and kernels."""
    listed = kernels.kernels()
    return {
        "version": __version__,
        "machine": platform.machine(),
        "libraries": str(lib_dir()),
        "cpu_library": kernels.cpu_library(),
        "calibration_text": f"{CALIBRATION_TEXT.parent.name}/{CALIBRATION_TEXT.name}",
        **{name: os.environ.get(f"LUTRA_{name.upper()}") or None for name in FORCED},
        "sets": kernels.sets()["supported"],
        "kernels": [
            {"name": k.name, "compiled": True, "supported": k.supported, "chosen": k.chosen} for k in listed
        ],
    }


def machine_text(machine: dict[str, Any]) -> str:
    """The same for people."""
    yes = {True: "yes", False: "-"}
    rows = [("kernel", "supported", "chosen")]
    rows += [(k["name"], yes[k["supported"]], yes[k["chosen"]]) for k in machine["kernels"]]
    forced = [
        f"{name}: {f'{machine[name]}, by LUTRA_{name.upper()}' if machine[name] else 'as the file says'}"
        for name in FORCED
    ]
    return f"""\
lutra {machine["version"]} on {machine["machine"]}, libraries in {machine["libraries"]}
ggml's own code for the CPU: {machine["cpu_library"]}
kernel sets of this CPU: {", ".join(machine["sets"])}
{chr(10).join(forced)}

{table(rows)}"""


# ---- a file --------------------------------------------------------------------------------


def file_json(info: FileInfo) -> dict[str, Any]:
    """Size, what the metadata says, and the tensors."""
    from gguf_tools.formats.family import LAYOUT_VERSION_KEY
    from gguf_tools.formats.keys import PLANES_KEY

    def value(key: str) -> Any:
        return info.metadata[key].value if key in info.metadata else None

    architecture = value("general.architecture")
    planes = value(PLANES_KEY)
    summary = {
        "architecture": architecture,
        "name": value("general.name"),
        "context": value(f"{architecture}.context_length"),
        "layout_version": value(LAYOUT_VERSION_KEY),
        "chat_template": "tokenizer.chat_template" in info.metadata,
        "two_planes": planes if isinstance(planes, list) else [],
    }
    return summary | ({"part": info.part} if info.part else {}) | info.to_json()


def file_text(info: FileInfo) -> str:
    """The same for people."""
    summary = file_json(info)
    tensors = summary.pop("tensors")
    if info.part:
        summary["part"] += ": what follows is in this part"
    summary["bytes"] = f"{summary['bytes']} ({mib(summary['bytes'])})"
    summary["bpw"] = f"{summary['bpw']:.3f}"
    summary["two_planes"] = f"{n} tensors" if (n := len(summary["two_planes"])) else None
    summary["chat_template"] = "yes" if summary["chat_template"] else "no"
    head = table([(key.replace("_", " "), str(value)) for key, value in summary.items() if value is not None])
    rows = [("tensor", "type", "shape", "bytes")]
    rows += [(t["name"], t["type"], " x ".join(map(str, t["shape"])), str(t["bytes"])) for t in tensors]
    return f"{head}\n\n{table(rows, right=(3,))}"
