# SPDX-License-Identifier: MIT
"""The processor: its name, what it can do, and how much of it we are given."""

from __future__ import annotations

import math
import os
import re
from typing import Any

from gguf_tools.errors import LutraError
from lutra.measure.doctor.system import CPUS, System, cpu_list
from lutra.runtime import kernels
from lutra.runtime.threads import allowed_cpus, cpu_quota, default_threads

# What kernels of ours or llama.cpp's can use, as Linux calls it.
_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
_CORES = {  # by implementer and part
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse N2",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD84): "Neoverse V3",
}


def name(system: System) -> str:
    """Of the board, machine or processor, with its cores, as far as the system knows."""
    info = system.text("proc/cpuinfo")
    board = system.text("proc/device-tree/model") or system.text("sys/firmware/devicetree/base/model")
    if not board and _cores(info):  # an Arm server, whose cpuinfo has no name
        dmi = "sys/devices/virtual/dmi/id"
        board = " ".join(filter(None, (system.text(f"{dmi}/sys_vendor"), system.text(f"{dmi}/product_name"))))
    if not board:
        found = re.search(r"^(?:model name|Hardware)\s*: (.+)$", info, re.MULTILINE)
        board = found[1] if found else system.run("sysctl", "-n", "machdep.cpu.brand_string")
    cores = ", ".join(_cores(info))
    return f"{board or 'unknown'} ({cores or system.machine})"


def _cores(info: str) -> list[str]:
    parts = re.findall(r"^CPU implementer\s*: (0x\w+)(?:.*\n)+?CPU part\s*: (0x\w+)", info, re.MULTILINE)
    names = (_CORES.get((int(a, 16), int(b, 16)), f"core {a}:{b}") for a, b in parts)
    return list(dict.fromkeys(names))


def examine(system: System) -> dict[str, Any]:
    """The section "cpu" of the report."""
    info = system.text("proc/cpuinfo")
    words = set(" ".join(re.findall(r"^(?:flags|Features)\s*: (.*)$", info, re.MULTILINE)).split())
    online = cpu_list(system.text(f"{CPUS}/online"))
    total = len(online) or os.cpu_count() or 1
    quota = cpu_quota()
    return {
        "name": name(system),
        "system": system.kind,
        "machine": system.machine,
        "kernel": ".".join(re.findall(r"\d+", system.text("proc/sys/kernel/osrelease"))[:2]) or None,
        "features": [feature for feature in _FEATURES if feature in words],
        "sve_bits": 8 * (system.number("proc/sys/abi/sve_default_vector_length") or 0) or None,
        "cpus": total,
        "allowed_cpus": len(allowed_cpus()),
        "quota_cpus": None if math.isinf(quota) else quota,
        "threads": default_threads(),
        "load": _load(system),
        "kernels": _kernels(),
    }


def _kernels() -> dict[str, Any]:
    """The sets of kernels, or why there are none."""
    try:
        return {**kernels.sets(), "forced": os.environ.get("LUTRA_KERNELS") or None}
    except LutraError as error:
        return {"error": str(error)}


def _load(system: System) -> float | None:
    """How many programs wanted a CPU in the last minute, before we began."""
    words = system.text("proc/loadavg").split()
    return float(words[0]) if words else None
