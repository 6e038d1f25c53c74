#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes all that follows from cb.toml and the layout of the family; the output is committed.

cpu_kernels/formats/generate.py            # writes the files that differ
cpu_kernels/formats/generate.py --check    # writes nothing, names them, exits with 1 if there are any
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gguf_tools.formats import strip  # noqa: E402
from gguf_tools.formats.family import CHUNK, LANE, ROWS, CBFormat, Codes  # noqa: E402

KERNELS = ROOT / "cpu_kernels"
TABLE = KERNELS / "formats" / "cb.toml"
OPS = ("quantize", "dequantize", "gemv", "batch", "gemm")  # the jobs of lutra_kernels.h
LICENCE = "SPDX-License-Identifier: MIT"
BY = "Written by cpu_kernels/formats/generate.py from cb.toml; do not edit."


class TableError(Exception):
    """cb.toml says something that cannot be; the message says what."""


@dataclass(frozen=True)
class Kernel:
    """One registered kernel: ``fmt`` is its type, or None for quantize, which has only ``sb``."""

    op: str
    set: str
    machine: str | None  # "x86_64", "aarch64"; None: all
    tile: str
    body: str
    arguments: str  # how the body is told the type
    fmt: CBFormat | None
    sb: int

    @property
    def type(self) -> str:
        """The type in names: "cb2_64", "q8_64"."""
        return self.fmt.name.lower() if self.fmt else f"q8_{self.sb}"

    @property
    def function(self) -> str:
        """The name of the kernel."""
        return f"lutra_{self.op}_{self.type}_{self.tile}_{self.set}"

    @property
    def id(self) -> str:
        """What it is registered for, in C."""
        return f"LUTRA_TYPE_{self.fmt.name}" if self.fmt else str(self.sb)


# ---- reading -------------------------------------------------------------------------------


def read_table() -> dict[str, Any]:
    """cb.toml."""
    try:
        import tomllib
    except ModuleNotFoundError:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise TableError("reading TOML needs Python 3.11, or pip install tomli") from None
    with TABLE.open("rb") as file:
        return tomllib.load(file)


def read_types(table: dict[str, Any]) -> list[CBFormat]:
    """The types, by id. Raises TableError for a name, a shape or an id that cannot be."""
    types: dict[int, CBFormat] = {}
    for name, row in table["types"].items():
        if not re.fullmatch(r"cb[1-9]\d*", name):
            raise TableError(f"type {name}: a name is cb and a number")
        if set(row) - {"second"} != {"bits", "weights", "ids"} or not row["ids"]:
            raise TableError(f"type {name}: needs bits, weights and ids")
        second = row.get("second")
        if second is not None and set(second) != {"bits", "weights"}:
            raise TableError(f"type {name}: second needs bits and weights")
        layer = Codes(second["bits"], second["weights"]) if second else None
        largest = max(map(int, row["ids"]))
        for sb, id_ in ((int(sb), id_) for sb, id_ in row["ids"].items()):
            if id_ in types:
                raise TableError(f"type {name}: id {id_} is taken by {types[id_].name}")
            suffix = "" if sb == largest else f"_{sb}"
            types[id_] = CBFormat(name.upper() + suffix, id_, row["bits"], row["weights"], sb, name, layer)
            try:
                layout = strip.block(row["bits"], row["weights"], sb)
                second_bytes = strip.second(layer.bits, layer.pair, sb).bytes if layer else 0
            except ValueError as error:
                raise TableError(f"type {name}: {error}") from error
            if (layout.bytes, second_bytes) != (types[id_].block_bytes, types[id_].second_bytes):
                raise TableError(
                    f"type {name}: the layout has {layout.bytes} + {second_bytes} bytes per block"
                )
    return [types[id_] for id_ in sorted(types)]


def read_kernels(table: dict[str, Any], types: list[CBFormat]) -> list[Kernel]:
    """The kernels, set by set and job by job. Raises TableError for a row that cannot be."""
    kernels = []
    sizes = sorted({fmt.sb for fmt in types}, reverse=True)
    for set_, row in table["kernels"].items():
        jobs = {op: job for op, job in row.items() if op not in ("machine", "types")}
        known = row.get("types")
        if unknown := sorted(set(known or ()) - set(table["types"])) + sorted(set(jobs) - set(OPS)):
            raise TableError(f"kernels.{set_}: there is no {unknown[0]}")
        for op, job in jobs.items():
            if not re.fullmatch(r"\d+x\d+", job["tile"]):
                raise TableError(f"kernels.{set_}.{op}: a tile is rows x columns, as 8x4, not {job['tile']}")
            common = (op, set_, row.get("machine"), job["tile"], job["body"])
            if op == "quantize":
                kernels += [Kernel(*common, str(sb), None, sb) for sb in sizes]
                continue
            for fmt in types:
                if known is None:
                    kernels.append(Kernel(*common, f"LUTRA_TYPE_{fmt.name}", fmt, fmt.sb))
                elif fmt.family in known:
                    number = fmt.family.removeprefix("cb")
                    kernels.append(Kernel(*common, f"{number}, {fmt.sb}", fmt, fmt.sb))
    return kernels


# ---- the types in C ------------------------------------------------------------------------


def picture(bits: int) -> list[str]:
    """Which lane vector owns which bit, as lines of text."""
    owners = strip.lane_owners(bits)
    lanes = 1 + max(map(max, owners))
    head = f"b = {bits}   {lanes} lane vectors in {len(owners)} vector{'s'[: len(owners) > 1]}"
    rows = [f"V{v}      " + " ".join(map(str, reversed(row))) for v, row in enumerate(owners)]
    return [f"{head:40} bit 7 6 5 4 3 2 1 0", *(f"{'':36} {row}" for row in rows)]


def shape_of_codes(layer: Codes) -> tuple[str, str]:
    """The codes of a chunk as dimensions in C, and what each counts."""
    owners = strip.lane_owners(layer.bits)
    lanes = 1 + max(map(max, owners))
    lanes_per_row = CHUNK // layer.pair // LANE
    rows = max(1, lanes // lanes_per_row)
    dimensions = [(ROWS // rows, {1: "row", 2: "row pair"}.get(rows, f"{rows} rows"))]
    if lanes < lanes_per_row:
        dimensions.append((lanes_per_row // lanes, "group"))
    if len(owners) > 1:
        dimensions.append((len(owners), "vector"))
    dimensions.append((LANE, "j"))
    return "".join(f"[{n}]" for n, _ in dimensions), "".join(f"[{what}]" for _, what in dimensions)


def second_of(fmt: CBFormat, between: str) -> str:
    """Bits and weights per code of the second layer as text, zeros without one."""
    return f"{fmt.second.bits}{between}{fmt.second.pair}" if fmt.second else f"0{between}0"


def library_size(fmt: CBFormat) -> str:
    """The bytes of a library as text."""
    n = fmt.library_bytes
    return f"{n} B" if n % 1024 else f"{n >> 10} KiB"


def cb_types_h(types: list[CBFormat]) -> str:
    """formats/cb_types.h."""
    families: dict[str, CBFormat] = {}
    for f in types:
        families.setdefault(f.family, f)
    lines = [
        f"// {LICENCE}",
        f"// {BY}",
        "// The types of the CB family; cb.h explains them.",
        "//",
        "//     type    b  p  b2 p2  SB   bpw     strip-super-block   second   library",
    ]
    for f in types:
        lines.append(
            f"//     {f.name:7} {f.bits}  {f.pair}  {second_of(f, '  ')}  {f.sb:3}  {f.bpw:<7g} "
            f"{f.block_bytes:4} B{'':12}  {f.second_bytes:4} B   {library_size(f)}"
        )
    lines += ["//", "// Which bits of the vectors belong to which lane vector, byte by byte:"]
    for bits in strip.BITS:
        lines += ["//", *(f"//   {line}" for line in picture(bits))]
    lines += [
        "#ifndef LUTRA_FORMATS_CB_TYPES_H",
        "#define LUTRA_FORMATS_CB_TYPES_H",
        "",
        "#include <stdint.h>",
        "",
        "// ggml type ids",
        "enum lutra_type {",
        *(f"    LUTRA_TYPE_{f.name} = {f.type}," for f in types),
        f"    LUTRA_TYPE_FIRST = LUTRA_TYPE_{types[0].name},",
        "};",
        "",
        "// ROW(name, in lower case, b, p, SB, b and p of the second layer or 0)",
        "// clang-format off",
        "#define LUTRA_CB_TYPES(ROW) \\",
    ]
    rows = [
        f"    ROW({f.name}, {f.name.lower()}, {f.bits}, {f.pair}, {f.sb}, {second_of(f, ', ')})"
        for f in types
    ]
    lines += [" \\\n".join(rows), ""]
    for family, f in families.items():
        dimensions, what = shape_of_codes(f.layers[0])
        lines += [
            f"struct lutra_{family}_chunk {{",
            "    uint8_t selector[8][2];",
            f"    uint8_t codes{dimensions}; // {what}",
            "};",
        ]
        if f.second:
            dimensions, what = shape_of_codes(f.second)
            lines.append(f"struct lutra_{family}_second {{ uint8_t codes{dimensions}; }}; // {what}")
        lines.append("")
    for f in types:
        chunk = f"struct lutra_{f.family}_chunk chunk[{f.sb // CHUNK}];"
        lines.append(f"struct lutra_{f.name.lower()} {{ uint16_t d[8]; {chunk} }};")
    lines += ["// clang-format on", "", "#ifndef __cplusplus"]
    for f in types:
        size = f"sizeof(struct lutra_{f.name.lower()}) == {f.block_bytes}"
        lines.append(
            f'_Static_assert({size}, "8 x {f.sb} weights, the first layer of {f.bpw:g} bits");'
            if f.second
            else f'_Static_assert({size}, "8 x {f.sb} weights at {f.bpw:g} bits");'
        )
    for family, f in families.items():
        if f.second:
            size = f"sizeof(struct lutra_{family}_second) == {f.second.chunk_bytes}"
            lines.append(f'_Static_assert({size}, "8 x {CHUNK} weights, the second layer");')
    return "\n".join([*lines, "#endif", "", "#endif", ""])


def bit_maps_inc() -> str:
    """ref/bit_maps.inc."""
    lines = [f"// {LICENCE}", f"// {BY}", "// clang-format off"]
    lines.append(f"const struct lutra_bits lutra_bits[{strip.BITS[-1] + 1}] = {{")
    for bits in strip.BITS:
        owners = strip.lane_owners(bits)
        maps = [f'"{"".join(map(str, reversed(row)))}"' for row in owners]
        head = f"    [{bits}] = {{{1 + max(map(max, owners))}, {len(owners)}, {{"
        lines.append(head + f",\n{' ' * len(head)}".join(maps) + "}},")
    return "\n".join([*lines, "};", "// clang-format on", ""])


# ---- the kernels in C ----------------------------------------------------------------------


def by_set(kernels: list[Kernel]) -> list[tuple[str, list[Kernel]]]:
    """The kernels of each set."""
    return [(set_, list(rows)) for set_, rows in groupby(kernels, key=lambda k: k.set)]


def kernels_h(kernels: list[Kernel]) -> str:
    """dispatch/kernels.h."""
    sets = by_set(kernels)
    lines = [
        f"// {LICENCE}",
        f"// {BY}",
        "// Every kernel of Lutra, one row each: ROW(op, SET, type, function). A row declares the function",
        "// and, where its set is compiled in, registers it; <set>/<op>.c defines it.",
        "#ifndef LUTRA_DISPATCH_KERNELS_H",
        "#define LUTRA_DISPATCH_KERNELS_H",
        "",
        '#include "../include/lutra_kernels.h"',
        "",
        "// clang-format off",
    ]
    for set_, mine in sets:
        rows = [f"    ROW({k.op + ',':12}{set_.upper()}, {k.id + ',':20}{k.function})" for k in mine]
        lines += [f"#define LUTRA_KERNELS_{set_.upper()}(ROW) \\", " \\\n".join(rows), ""]
    lines += ["// Those of this build."]
    guard = "#if"
    for machine in dict.fromkeys(mine[0].machine for _, mine in sets if mine[0].machine):
        names = [set_ for set_, mine in sets if mine[0].machine in (None, machine)]
        lines += [f"{guard} defined(__{machine}__)", every(names)]
        guard = "#elif"
    lines += ["#else", every([set_ for set_, mine in sets if mine[0].machine is None]), "#endif"]
    lines += [
        "// clang-format on",
        "",
        "#define LUTRA_DECLARE(op, set, type, function) lutra_##op##_fn function;",
    ]
    lines += [f"LUTRA_KERNELS_{set_.upper()}(LUTRA_DECLARE)" for set_, _ in sets]
    return "\n".join([*lines, "#undef LUTRA_DECLARE", "", "#endif", ""])


def sets_h(sets: list[str]) -> str:
    """include/lutra_sets.h."""
    lines = [
        f"// {LICENCE}",
        f"// {BY}",
        "// Instruction sets, of each machine the worst first: the order of choice.",
        "#ifndef LUTRA_SETS_H",
        "#define LUTRA_SETS_H",
        "",
        "enum lutra_set {",
        *(f"    LUTRA_SET_{set_.upper()}," for set_ in sets),
        "    LUTRA_SET_COUNT",
        "};",
        "",
        "// clang-format off",
        "#define LUTRA_SET_NAMES \\",
        ", \\\n".join(f'    "{set_}"' for set_ in sets),
        "// clang-format on",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def every(sets: list[str]) -> str:
    """The macro that has the rows of these sets."""
    rows = [f"    LUTRA_KERNELS_{set_.upper()}(ROW)" for set_ in sets]
    return "#define LUTRA_KERNELS(ROW) \\\n" + " \\\n".join(rows)


def job_c(kernels: list[Kernel]) -> str:
    """<set>/<job>.c: the body, compiled for every type."""
    lines = [
        f"// {LICENCE}",
        f"// {BY}",
        f'#include "{kernels[0].body}"',
        "",
        '#include "../dispatch/instantiate.h"',
        "",
    ]
    lines += [f"LUTRA_KERNEL({k.op}, {k.function}, {k.arguments})" for k in kernels]
    return "\n".join([*lines, ""])


# ---- elsewhere -----------------------------------------------------------------------------


def cb_rows_py(types: list[CBFormat]) -> str:
    """overlay/cb_rows.py: lines of llama.cpp's enums and switches."""
    families: dict[str, list[CBFormat]] = {}
    for f in types:
        families.setdefault(f.family.upper(), []).append(f)
    files = {family: max(mine, key=lambda f: f.sb) for family, mine in families.items()}
    enum = [f"        GGML_TYPE_{f.name:7} = {f.type}," for f in types]
    enum[0] += " // Lutra: see cpu_kernels/formats/cb.h"
    enum.append(f"        GGML_TYPE_{'COUNT':7} = {types[-1].type + 1},")
    file_types = [f"        LLAMA_FTYPE_MOSTLY_{n:13} = {f.type}, // Lutra" for n, f in files.items()]
    names = []
    for n in files:
        case = f"case LLAMA_FTYPE_MOSTLY_{n}:"
        names.append(f'        {case:34} name = LLAMA_FTYPE_PREFIX "{n}"; break;')
    guesses = []
    for family, mine in families.items():
        for f in sorted(mine, key=lambda f: f.sb):
            case = f"            case GGML_TYPE_{f.name}:"
            if f == files[family]:
                case = f"{case:35} {f'ftype = LLAMA_FTYPE_MOSTLY_{family};':35} break;"
            guesses.append(case)
    parts = {
        "GGML_TYPES": ("enum ggml_type", enum),
        "FILE_TYPES": ("enum llama_ftype", file_types),
        "FILE_TYPE_NAMES": ("the name of each file type", names),
        "FILE_TYPE_OF_TYPE": ("the file type when most tensors have this type", guesses),
    }
    lines = [
        f"# {LICENCE}",
        '"""The rows of the CB types in llama.cpp\'s enums and switches.',
        "",
        f"{BY}",
        '"""',
        "",
    ]
    for name, (what, rows) in parts.items():
        lines += [f"# {what}", f'{name} = """\\', *rows, '"""', ""]
    return "\n".join(lines)


def members_py(types: list[CBFormat]) -> str:
    """gguf_tools/formats/members.py."""
    lines = [
        f"# {LICENCE}",
        '"""The types of the CB family.',
        "",
        BY,
        '"""',
        "",
        "from typing import Any",
        "",
        "# name, ggml id, bits per code, weights per code, super-block, type, (bits, weights) of layer two",
        "MEMBERS: tuple[tuple[Any, ...], ...] = (",
        *(
            f'    ("{f.name}", {f.type}, {f.bits}, {f.pair}, {f.sb}, "{f.family}"'
            + (f", ({second_of(f, ', ')}))," if f.second else "),")
            for f in types
        ),
        ")",
        "",
    ]
    return "\n".join(lines)


def kernel_table(kernels: list[Kernel]) -> str:
    """The kernels in Markdown: a line per job and type, a column per set, the tile in the cell."""
    sets = [set_ for set_, _ in by_set(kernels)]
    lines = ["| job | type | " + " | ".join(sets) + " |", "|---" * (2 + len(sets)) + "|"]
    for op, type_ in dict.fromkeys((k.op, k.type) for k in kernels):
        tiles = {k.set: k.tile for k in kernels if (k.op, k.type) == (op, type_)}
        lines.append(f"| {op} | {type_} | " + " | ".join(tiles.get(s, "") for s in sets) + " |")
    return "\n".join([*lines, ""])


def type_table(types: list[CBFormat]) -> str:
    """The types in Markdown."""
    lines = [
        "| type | ggml id | bits per code | weights per code | super-block | second layer | bits per weight "
        "| libraries | bytes per 8 x super-block |",
        "|---" * 9 + "|",
    ]
    for f in types:
        second = f"{f.second.bits} bits per {f.second.pair}" if f.second else ""
        nbytes = f"{f.block_bytes} + {f.second_bytes}" if f.second else f.block_bytes
        lines.append(
            f"| {f.name} | {f.type} | {f.bits} | {f.pair} | {f.sb} | {second} | {f.bpw:g} "
            f"| {library_size(f)} | {nbytes} |"
        )
    return "\n".join([*lines, ""])


def pictures(types: list[CBFormat]) -> str:
    """The bit placements of the types in Markdown."""
    lines = []
    for bits in sorted({layer.bits for f in types for layer in f.layers}):
        names = [
            f.family.upper() + (", second layer" if i else "")
            for f in types
            for i, layer in enumerate(f.layers)
            if layer.bits == bits
        ]
        lines += [f"{', '.join(dict.fromkeys(names))}:", "", *(f"    {line}" for line in picture(bits)), ""]
    return "\n".join(lines)


def section(path: Path, whole: str, name: str, text: str) -> str:
    """``whole``, the text of a file, with one generated section replaced; TableError without one."""
    begin, end = f"<!-- {name}: written by cpu_kernels/formats/generate.py -->\n", "<!-- end -->\n"
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise TableError(
            f"{path.relative_to(ROOT)}: no section '{begin.strip()}' that ends with '{end.strip()}'"
        )
    return before + begin + text + end + after


def read() -> tuple[list[str], list[CBFormat], list[Kernel]]:
    """The sets, the types and the kernels of cb.toml."""
    table = read_table()
    types = read_types(table)
    return list(table["kernels"]), types, read_kernels(table, types)


def outputs() -> dict[Path, str]:
    """Every generated file, or file with generated sections, and its text."""
    sets, types, kernels = read()
    texts = {
        KERNELS / "formats" / "cb_types.h": cb_types_h(types),
        KERNELS / "ref" / "bit_maps.inc": bit_maps_inc(),
        KERNELS / "dispatch" / "kernels.h": kernels_h(kernels),
        KERNELS / "include" / "lutra_sets.h": sets_h(sets),
        KERNELS / "overlay" / "cb_rows.py": cb_rows_py(types),
        ROOT / "gguf_tools" / "formats" / "members.py": members_py(types),
    }
    for (set_, op), mine in groupby(kernels, key=lambda k: (k.set, k.op)):
        texts[KERNELS / set_ / f"{op}.c"] = job_c(list(mine))
    for path, name, text in (
        (KERNELS / "README.md", "kernels", kernel_table(kernels)),
        (ROOT / "docs" / "FORMAT.md", "types", type_table(types)),
        (ROOT / "docs" / "FORMAT.md", "bits", pictures(types)),
    ):
        texts[path] = section(path, texts.get(path) or path.read_text(), name, text)
    return texts


def differences(wanted: dict[Path, str]) -> tuple[list[Path], list[Path]]:
    """Files to write, and generated kernels that cb.toml no longer has."""
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    found = (path for op in OPS for path in KERNELS.glob(f"*/{op}.c"))
    return stale, sorted(path for path in found if path not in wanted)


def main() -> int:
    """Write or check; the exit status says whether all is as it should be."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit("usage: generate.py [--check]")
    try:
        wanted = outputs()
    except TableError as error:
        sys.exit(f"error: {TABLE.relative_to(ROOT)}: {error}")
    stale, gone = differences(wanted)
    for path in (*stale, *gone):
        print(f"{path.relative_to(ROOT)}: not up to date" if check else path.relative_to(ROOT))
    if check:
        return 1 if stale or gone else 0
    for path in stale:
        path.write_text(wanted[path])
    for path in gone:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
