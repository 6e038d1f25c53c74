# SPDX-License-Identifier: MIT
"""The applier of the overlay, the sources it accepts, and the move to another release."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cpu_kernels" / "overlay"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import fetch_sdist
from edits import Edit
from fixes import FIXES
from overlay import EDITS, Lock, OverlayError, apply_edits, drift, enclosing, file_hashes, sha256

ROOT = Path(__file__).resolve().parents[2]
EDIT = Edit("a.c", "void f(", "int b;", "after", "    int lutra;\n")


def edited(text: str, edit: Edit = EDIT) -> str:
    return apply_edits({"a.c": text.encode()}, [edit])["a.c"].decode()


def upstream(**changes: str) -> dict[str, bytes]:
    """A small llama.cpp in which every edit finds its anchor; ``changes`` replace whole files."""
    files = dict.fromkeys((e.file for e in EDITS), "// upstream\n")
    for edit in sorted(EDITS, key=lambda e: e.inside != ""):  # what is at the top level comes first
        if edit.anchor.startswith(edit.inside):
            files[edit.file] += f"{edit.anchor}\n"
        else:
            files[edit.file] += f"{edit.inside}\n    {edit.anchor}\n"
    files["LICENSE"] = "Permission is hereby granted\n"
    return {name: text.encode() for name, text in {**files, **changes}.items()}


def write(files: dict[str, bytes], root: Path) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(files: dict[str, bytes], path: Path, prefix: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def run(script: str, *args: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


# ---- one edit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("before", "void f() {\n  NEW\n  int b;\n}\n"),
        ("after", "void f() {\n  int b;\n  NEW\n}\n"),
        ("instead", "void f() {\n  NEW\n}\n"),
    ],
)
def test_places_and_idempotence(place: str, expected: str) -> None:
    edit = Edit("a.c", "void f(", "int b;", place, "  NEW\n")
    once = edited("void f() {\n  int b;\n}\n", edit)
    assert once == expected
    assert edited(once, edit) == once


def test_a_replacement_that_keeps_the_anchor_is_idempotent() -> None:
    edit = Edit("a.c", "int f(", "return n;", "instead", "    return n + m;\n")
    once = edited("int f() {\n    return n;\n}\n", edit)
    assert edited(once, edit) == once == "int f() {\n    return n + m;\n}\n"


@pytest.mark.parametrize("text", ["int a;\n", "int b;\nint b;\n", "int b; // moved\n", "xint b;\n"])
@pytest.mark.parametrize("place", ["before", "after", "instead"])
def test_an_anchor_must_match_exactly_one_line(text: str, place: str) -> None:
    with pytest.raises(OverlayError, match=r"a\.c: the anchor matches [02] lines, not 1: int b;"):
        edited(text, Edit("a.c", "", "int b;", place, "NEW\n"))


def test_all_broken_edits_are_named_at_once() -> None:
    with pytest.raises(OverlayError) as error:
        apply_edits({"a.c": b"\n"}, [EDIT, Edit("gone.c", "", "int z;", "after", "NEW\n")])
    assert "a.c: the anchor matches 0 lines" in str(error.value)
    assert "gone.c: no such file; wanted for the anchor: int z;" in str(error.value)


# ---- its place ---------------------------------------------------------------------------------

SOURCE = """\
#include <a.h>
namespace x {
extern "C" {
    // a comment
    enum color {
        RED,
    };
}
struct s {
private:
    // a member
    int b;

    int get() const {
#ifdef FAST
        return b;
#endif
    }
};
static int table[] = {
    [3] = { 4 },
};
static long
    g(int x,
        int y)
{
    if (x) {
end:
        y++;
    }
    // done
}
int top(int x) {
}
"""


@pytest.mark.parametrize(
    ("line", "opening"),
    [
        ("#include <a.h>", ""),
        ("// a comment", ""),
        ("RED,", "enum color {"),
        ("int b;", "struct s {"),
        ("return b;", "struct s {"),
        ("[3] = { 4 },", "static int table[] = {"),
        ("y++;", "static long"),
        ("// done", "static long"),
        ("int top(int x) {", "int top(int x) {"),
    ],
)
def test_what_encloses_a_line(line: str, opening: str) -> None:
    lines = SOURCE.splitlines()
    (at,) = (i for i, text in enumerate(lines) if text.strip() == line)
    assert enclosing(lines, at) == opening


@pytest.mark.parametrize("place", ["before", "after", "instead"])
def test_a_line_that_drifts_into_another_function_is_refused(place: str) -> None:
    edit = Edit("a.c", "void f(", "int b;", place, "    NEW;\n")
    assert "NEW" in edited("void f(int x) {\n    int b;\n}\nvoid g(int x) {\n}\n", edit)
    with pytest.raises(OverlayError, match=r"lies in void g\(int x\) \{, not in void f\(: int b;"):
        edited("void f(int x) {\n}\nvoid g(int x) {\n    int b;\n}\n", edit)


def test_an_edit_that_was_applied_in_another_function_is_refused() -> None:
    edit = Edit("a.c", "void f(", "int b;", "instead", "    NEW;\n")
    with pytest.raises(OverlayError, match=r"lies in void g\(\) \{, not in void f\("):
        edited("void f() {\n}\nvoid g() {\n    NEW;\n}\n", edit)


def test_a_line_of_the_top_level_is_refused_inside_a_function() -> None:
    edit = Edit("a.c", "", '#include "a.h"', "after", "#include <b.h>\n")
    assert edited('#include "a.h"\nint f() {\n}\n', edit) == '#include "a.h"\n#include <b.h>\nint f() {\n}\n'
    with pytest.raises(OverlayError, match=r"lies in int f\(\) \{, not in the top level"):
        edited('int f() {\n    #include "a.h"\n}\n', edit)


# ---- the table ---------------------------------------------------------------------------------


def test_the_table_applies_twice_to_the_same_files() -> None:
    once = apply_edits(upstream())
    assert apply_edits(once) == once
    assert all(once[e.file] != upstream()[e.file] for e in EDITS)


INSIDE = [e for e in EDITS if e.inside and not e.anchor.startswith(e.inside)]


@pytest.mark.parametrize("edit", INSIDE, ids=lambda e: f"{e.file}: {e.anchor[:40]}")
def test_every_edit_of_the_table_is_refused_in_another_place(edit: Edit) -> None:
    moved = f"int drifted() {{\n    {edit.anchor}\n}}\n"
    with pytest.raises(OverlayError, match="lies in int drifted"):
        apply_edits({edit.file: moved.encode()}, [edit])


def test_every_fix_of_upstream_says_why_in_one_sentence() -> None:
    assert len(FIXES) == 15
    for fix in FIXES:
        assert fix.why.endswith(".")
        assert ". " not in fix.why
        assert fix.edits


def test_the_lock_covers_exactly_the_edited_files() -> None:
    assert set(Lock.read().files) == {e.file for e in EDITS}
    assert len(Lock.read().sha256) == 64


def test_the_python_dependency_is_the_locked_release() -> None:
    lock = Lock.read()
    assert f'"{lock.package}=={lock.version}"' in (ROOT / "pyproject.toml").read_text()


# ---- sources -----------------------------------------------------------------------------------


def test_a_tree_an_sdist_and_tarballs_give_the_same_files(tmp_path: Path) -> None:
    files = upstream()
    expected = fetch_sdist.prepare(files)
    sources = [
        write(files, tmp_path / "llama.cpp"),
        write({f"vendor/llama.cpp/{n}": d for n, d in files.items()}, tmp_path / "sdist"),
        pack(files, tmp_path / "a.tar.gz", "llama.cpp-b1/"),
        pack(files, tmp_path / "b.tar.gz", "llama_cpp_python-1/vendor/llama.cpp/"),
    ]
    for source in sources:
        dest = tmp_path / f"out-{source.name}"
        fetch_sdist.fetch(source, dest, tmp_path / "cache")
        found = {p.relative_to(dest).as_posix(): p.read_bytes() for p in dest.rglob("*") if p.is_file()}
        assert found == expected, source
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_an_sdist_brings_the_bindings(tmp_path: Path, packed: bool) -> None:
    bindings = {path: path.encode() for path in fetch_sdist.BINDINGS}
    sdist = bindings | {
        "llama_cpp/llama.py": b"",
        **{f"vendor/llama.cpp/{n}": d for n, d in upstream().items()},
    }
    source = (
        pack(sdist, tmp_path / "b.tar.gz", "llama_cpp_python-1/") if packed else write(sdist, tmp_path / "in")
    )
    files = fetch_sdist.read_source(source)
    assert files == upstream() | {fetch_sdist.BINDINGS[path]: data for path, data in bindings.items()}


def test_without_bindings_there_is_a_warning(tmp_path: Path) -> None:
    source = write(upstream(), tmp_path / "in")
    result = run("fetch_sdist.py", "--source", source, "--dest", tmp_path / "out", "--cache", tmp_path)
    assert "warning: no bindings for Python; llama-cpp-python's sdist has them" in result.stderr


def test_only_what_the_build_needs_is_taken(tmp_path: Path) -> None:
    extra = {
        "ggml/src/ggml-cuda/x.cu": b"",
        "tests/x.cpp": b"",
        "tools/ui/package.json": b"",
        "models/m.gguf": b"",
    }
    needed = {"ggml/src/ggml-cpu/arch/arm/quants.c": b"1", "tools/ui/CMakeLists.txt": b"2"}
    files = fetch_sdist.read_source(write({**upstream(), **extra, **needed}, tmp_path))
    assert set(files) == set(upstream()) | set(needed)


def test_a_second_run_touches_nothing_and_removes_what_is_gone(tmp_path: Path) -> None:
    source = write({**upstream(), "src/gone.cpp": b"x"}, tmp_path / "in")
    dest = tmp_path / "out"
    fetch_sdist.fetch(source, dest, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in dest.rglob("*.c*") if p.name != "gone.cpp"}
    (source / "src/gone.cpp").unlink()
    fetch_sdist.fetch(source, dest, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in dest.rglob("*.c*")} == stamps


def test_drift_is_reported_but_does_not_stop(tmp_path: Path) -> None:
    source = write(upstream(), tmp_path / "in")
    result = run("fetch_sdist.py", "--source", source, "--dest", tmp_path / "out", "--cache", tmp_path)
    assert result.returncode == 0
    assert "warning: include/llama.h differs from that of llama-cpp-python" in result.stderr


def test_a_broken_anchor_stops_with_file_and_anchor(tmp_path: Path) -> None:
    source = write(upstream(**{"src/llama-quant.cpp": "int main() {}\n"}), tmp_path / "in")
    result = run("fetch_sdist.py", "--source", source, "--dest", tmp_path / "out", "--cache", tmp_path)
    assert result.returncode == 1
    assert "src/llama-quant.cpp: the anchor matches 0 lines, not 1: const size_t row_size" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "directory", "text", "tarball"])
def test_a_wrong_source_is_refused(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "directory":
        source.mkdir()
    elif kind == "text":
        source.write_text("no tarball")
    elif kind == "tarball":
        pack({"x": b""}, source, "")
    result = run("fetch_sdist.py", "--source", source, "--dest", tmp_path / "out", "--cache", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {source}")
    assert "Traceback" not in result.stderr


def test_a_download_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_sdist, "pip_download", lambda package, version, path: path.write_bytes(b"evil"))
    with pytest.raises(fetch_sdist.FetchError, match=r"has SHA-256 .* the lock file wants"):
        fetch_sdist.download(Lock("llama-cpp-python", "1", "0" * 64, {}), tmp_path)
    assert not list(tmp_path.glob("*.tar.gz"))


def test_a_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def pip_download(package: str, version: str, path: Path) -> None:
        calls.append(version)
        path.write_bytes(b"sdist")

    monkeypatch.setattr(fetch_sdist, "pip_download", pip_download)
    lock = Lock("llama-cpp-python", "1", sha256(b"sdist"), {})
    assert fetch_sdist.download(lock, tmp_path) == fetch_sdist.download(lock, tmp_path)
    assert calls == ["1"]


# ---- another release -----------------------------------------------------------------------------


def bump(tmp_path: Path, files: dict[str, bytes]) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    lock = tmp_path / "lock.json"
    Lock("llama-cpp-python", "1.0", "old", file_hashes(upstream())).write(lock)
    pack(files, tmp_path / "llama_cpp_python-1.1.tar.gz", "llama_cpp_python-1.1/vendor/llama.cpp/")
    result = run("bump_llama.py", "1.1", "--cache", tmp_path, "--lock", lock)
    return result, json.loads(lock.read_text())


def test_bump_reports_drift_and_rewrites_the_lock(tmp_path: Path) -> None:
    name = "src/llama-quant.cpp"
    files = upstream(**{name: upstream()[name].decode() + "// new line\n"})
    assert drift(files, Lock("", "", "", file_hashes(upstream()))) == [name]
    result, lock = bump(tmp_path, files)
    assert result.returncode == 0, result.stderr
    assert f"1 of {len(Lock.read().files)} edited files have changed" in result.stdout
    assert name in result.stdout
    assert lock["version"] == "1.1"
    assert lock["files"] == file_hashes(files)
    assert lock["sha256"] == sha256((tmp_path / "llama_cpp_python-1.1.tar.gz").read_bytes())


def test_bump_refuses_a_line_that_has_moved_to_another_function(tmp_path: Path) -> None:
    name, place, elsewhere = (
        "common/log.cpp",
        "struct common_log * common_log_main(",
        "void common_log_other(",
    )
    result, lock = bump(tmp_path, upstream(**{name: upstream()[name].decode().replace(place, elsewhere)}))
    assert result.returncode == 1
    assert f"{name}: the anchor lies in {elsewhere}, not in {place}" in result.stderr
    assert lock["version"] == "1.0"


def test_bump_refuses_a_component_without_a_licence_notice(tmp_path: Path) -> None:
    result, lock = bump(tmp_path, upstream(**{"vendor/new/new.h": "int x;\n"}))
    assert result.returncode == 1
    assert "error: new (in vendor/) has no licence notice" in result.stderr
    assert lock["version"] == "1.0"


def test_bump_names_what_to_repair_and_keeps_the_lock(tmp_path: Path) -> None:
    result, lock = bump(tmp_path, upstream(**{"src/llama-quant.cpp": "rewritten\n"}))
    assert result.returncode == 1
    assert "src/llama-quant.cpp: the anchor matches 0 lines" in result.stderr
    assert lock["version"] == "1.0"
