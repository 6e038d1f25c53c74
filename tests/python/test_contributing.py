# SPDX-License-Identifier: MIT
"""CONTRIBUTING.md is true: its lists have every file that knows of a type, a set, a family or a verb."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from gguf_tools.formats.catalog import TYPES
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.sources.dequantize import METHODS
from gguf_tools.sources.families import FAMILIES
from lutra.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SETS = re.findall(r"^\[kernels\.(\w+)\]", (ROOT / "cpu_kernels/formats/cb.toml").read_text(), re.MULTILINE)
KINDS = {  # heading: (placeholder, the things there are)
    "A codebook type": ("type", [fmt.name.lower() for fmt in CB_FORMATS.values()]),
    "An instruction set": ("set", SETS),
    "A model family": ("family", [Path(f.add_keys.__code__.co_filename).stem for f in FAMILIES]),
    "A quantized checkpoint": (
        "method",
        sorted({Path(m.__code__.co_filename).stem for m in METHODS.values()}),
    ),
    "A verb": ("verb", list(VERBS)),
}
# A file knows such things when it names all of one line; one name alone is often an example.
TOGETHER = {
    "A codebook type": [["cb2", "cb3", "cb4"]],  # the oldest ones
    "An instruction set": [
        [s for s in SETS if s.startswith("avx")],
        [s for s in SETS if s.startswith(("neon_", "sve"))],
    ],
    "A model family": [[name] for name in KINDS["A model family"][1] if name != "llama"],
}


def listed(heading: str) -> list[str]:
    """The paths of the lists under a heading."""
    section = TEXT.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    items = re.findall(r"^- ((?:`[^`]+`,\s+)*`[^`]+`):", section, re.MULTILINE)
    return [path for item in items for path in re.findall(r"`([^`]+)`", item)]


def knows(path: str, heading: str) -> bool:
    """Whether a file names such things, as words of their own or in identifiers."""
    text = (ROOT / path).read_text().lower()
    return any(
        all(re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9]|\.\d)", text) for name in names)
        for names in TOGETHER[heading]
    )


def sources() -> list[str]:
    """What people write and programs read: no documents, tests or files that a program writes."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    suffixes = (".py", ".c", ".h", ".cpp", ".inc", ".toml", ".txt", "")
    found = []
    for name in listing.stdout.splitlines():
        if Path(name).suffix in suffixes and not name.startswith(("tests/", "docs/", "models/")):
            path = ROOT / name
            if path.is_file() and "do not edit" not in "".join(path.read_text().splitlines()[:4]):
                found.append(name)
    return found


def test_the_lists_are_found() -> None:
    assert set(re.findall(r"^### (.+)", TEXT, re.MULTILINE)) == {*KINDS, "Another release of llama.cpp"}
    assert all(len(things) > 1 for _, things in KINDS.values())
    assert all(listed(heading) for heading in KINDS)
    assert listed("A codebook type")[0] == "cpu_kernels/formats/cb.toml"


@pytest.mark.parametrize("heading", [*KINDS, "Another release of llama.cpp"])
def test_every_file_of_a_list_is_there(heading: str) -> None:
    placeholder, things = KINDS.get(heading, ("", [""]))
    missing = {
        path
        for pattern in listed(heading)
        for path in (pattern.replace(f"<{placeholder}>", thing) for thing in things)
        if not (ROOT / path).exists()
    }
    assert not missing


@pytest.mark.parametrize("heading", list(TOGETHER))
def test_every_file_of_a_list_knows_such_a_thing(heading: str) -> None:
    files = [path for path in listed(heading) if (ROOT / path).is_file()]
    assert [path for path in files if not knows(path, heading)] == []


@pytest.mark.parametrize("heading", list(TOGETHER))
def test_no_other_file_knows_such_a_thing(heading: str) -> None:
    placeholder, things = KINDS[heading]
    own = tuple(path.replace(f"<{placeholder}>", thing) for path in listed(heading) for thing in things)
    assert [path for path in sources() if knows(path, heading) and not path.startswith(own)] == []


def test_a_verb_is_a_module_and_a_module_a_verb() -> None:
    parts = {"EPILOG", "add_arguments", "run"}
    modules = {}
    for path in (ROOT / "lutra/cli").glob("*.py"):
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        modules[path.stem] = names
    assert {name for name, names in modules.items() if parts <= names} == set(VERBS)


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md"])
def test_the_documents_name_every_verb(document: str) -> None:
    text = (ROOT / document).read_text()
    assert [verb for verb in VERBS if not re.search(rf"lutra {verb}\b|`{verb}`", text)] == []


def test_every_part_of_scripts_test_is_explained() -> None:
    script = (ROOT / "scripts/test").read_text()
    run = set(re.findall(r'^\s*part "([^"]+)"', script, re.MULTILINE))
    run |= set(re.findall(r'\bpart "([^"]+)"', script))
    table = set(re.findall(r"^\| ([^|]+?) \|", TEXT.partition("## Tests\n")[2], re.MULTILINE))
    assert run == table - {"part", "---"}


def test_the_recipes_have_the_planners_signal_to_noise() -> None:
    planned = [str(kind.snr) for kind in TYPES.values() if kind.snr is not None]
    text = " ".join((ROOT / "docs/RECIPES.md").read_text().split())
    (row,) = re.findall(r"(?:\d+\.\d, ){3,}\d+\.\d dB", text)
    assert sorted(row.removesuffix(" dB").split(", "), key=float) == sorted(planned, key=float)
