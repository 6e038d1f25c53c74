#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Brings llama.cpp: pip downloads the pinned llama-cpp-python sdist, the overlay's edits are applied.

The licence notices of what it holds are gathered beside it in `notices/`. Called by CMake when it
configures. `--source` takes a local tree (llama.cpp itself or an unpacked sdist) or a tarball of
either instead, for offline builds and for work on upstream.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cpu_kernels" / "overlay"))

from notices import NoticeError, notices
from overlay import Lock, OverlayError, apply_edits, drift, sha256

MARK = "ggml/include/ggml.h"  # tells the root of llama.cpp
WANTED = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake/",
    "common/",
    "conversion/",
    "convert_hf_to_gguf.py",
    "ggml/",
    "gguf-py/LICENSE",
    "gguf-py/gguf/",
    "include/",
    "licenses/",
    "src/",
    "vendor/",
    "tools/",
)
WANTED_FILES = (
    "scripts/ui-assets.cmake",
    "tools/ui/CMakeLists.txt",
    "tools/ui/ui.cpp.in",
    "tools/ui/ui.h.in",
)
UNWANTED = ("tools/ui/", "ggml/tests/", "ggml/examples/")
VENDORED = "vendor/llama.cpp/"  # where an sdist has it
# Of llama-cpp-python itself: the bindings of the C interface, which need nothing else of the package.
BINDINGS = {
    "llama_cpp/llama_cpp.py": "bindings/llama_cpp.py",
    "llama_cpp/_ctypes_extensions.py": "bindings/_ctypes_extensions.py",
    "LICENSE.md": "bindings/LICENSE.md",
}


class FetchError(Exception):
    """The source cannot be had; the message says what to do."""


def wanted(path: str) -> bool:
    """Whether the build needs this file of llama.cpp: no GPU backends, web pages, tests or models."""
    if path in WANTED_FILES:
        return True
    if path.startswith("ggml/src/ggml-") and "/" in path.removeprefix("ggml/src/"):
        return path.startswith(("ggml/src/ggml-cpu/", "ggml/src/ggml-rpc/"))
    return path.startswith(WANTED) and not path.startswith(UNWANTED)


def download(lock: Lock, cache: Path) -> Path:
    """The path of the locked sdist in ``cache``, downloaded with pip unless it is there."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{lock.package.replace('-', '_')}-{lock.version}.tar.gz"
    if not path.exists() or sha256(path.read_bytes()) != lock.sha256:
        pip_download(lock.package, lock.version, path)
    found = sha256(path.read_bytes())
    if found != lock.sha256:
        path.unlink()
        raise FetchError(f"{path.name} has SHA-256 {found}, the lock file wants {lock.sha256}")
    return path


def pip_download(package: str, version: str, path: Path) -> None:
    """Downloads the sdist of one release to ``path``."""
    # pip reads the metadata of what it downloads; without isolation it need not install the build
    # system a second time for that (20 s).
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("scikit_build_core") else []
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--no-binary", package, *isolation, "--dest", directory, f"{package}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        sdists = list(Path(directory).glob("*.tar.gz"))
        if result.returncode != 0 or len(sdists) != 1:
            raise FetchError(
                f"pip could not download {package} {version}:\n{result.stderr.strip()}\n"
                "offline, set LUTRA_LLAMA_SOURCE to a local llama.cpp, sdist or tarball"
            )
        sdists[0].replace(path)


def read_source(source: Path) -> dict[str, bytes]:
    """The wanted files (path to contents) of llama.cpp in a directory or a tarball; an sdist's bindings."""
    if source.is_dir():
        roots = [r for r in (source, source / VENDORED) if (r / MARK).is_file()]
        if not roots:
            raise FetchError(f"{source}: neither llama.cpp nor an unpacked llama-cpp-python sdist")
        root = roots[0]
        names = (
            os.path.relpath(os.path.join(directory, name), root).replace(os.sep, "/")
            for directory, _, names in os.walk(root)
            for name in names
        )
        paths = {name: root / name for name in sorted(names) if wanted(name)}
        if root != source:
            paths |= {name: source / path for path, name in BINDINGS.items() if (source / path).is_file()}
        return {name: path.read_bytes() for name, path in paths.items()}
    try:
        with tarfile.open(source) as tar:
            members = [m for m in tar.getmembers() if m.isfile()]
            prefixes = [m.name.removesuffix(MARK) for m in members if f"/{m.name}".endswith(f"/{MARK}")]
            if not prefixes:
                raise FetchError(f"{source}: holds neither llama.cpp nor a llama-cpp-python sdist")
            prefix = min(prefixes, key=len)
            bindings = {}
            if prefix.endswith(VENDORED):
                bindings = {prefix.removesuffix(VENDORED) + path: name for path, name in BINDINGS.items()}
            files = {}
            for member in members:
                name = bindings.get(member.name) or member.name.removeprefix(prefix)
                taken = member.name in bindings or (member.name.startswith(prefix) and wanted(name))
                content = tar.extractfile(member) if taken else None
                if content:
                    files[name] = content.read()
            return files
    except (OSError, tarfile.TarError) as error:
        raise FetchError(f"{source}: cannot be read: {error}") from error


def write_tree(files: dict[str, bytes], dest: Path) -> None:
    """Makes ``dest`` hold exactly ``files``; a file that has not changed keeps its time stamp."""
    for name, data in files.items():
        path = dest / name
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in dest.rglob("*"):
        if path.is_file() and path.relative_to(dest).as_posix() not in files:
            path.unlink()


def prepare(files: dict[str, bytes]) -> dict[str, bytes]:
    """The edited ``files`` (path to contents), and the licence notices of what they hold.

    Raises OverlayError if an edit does not fit, NoticeError if a component has no notice.
    """
    texts = {f"notices/{name}.txt": text for name, text in notices(files).items()}
    return apply_edits(files) | texts


def fetch(source: Path | None, dest: Path, cache: Path) -> None:
    """Writes the edited llama.cpp to ``dest``.

    Raises FetchError if there is no source, and what ``prepare`` raises.
    """
    lock = Lock.read()
    files = read_source(source if source else download(lock, cache))
    for name in drift(files, lock):
        print(f"warning: {name} differs from that of {lock.package} {lock.version}", file=sys.stderr)
    if not set(BINDINGS.values()) <= set(files):
        print(f"warning: no bindings for Python; {lock.package}'s sdist has them", file=sys.stderr)
    write_tree(prepare(files), dest)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dest", type=Path, required=True, help="directory that will hold the edited llama.cpp"
    )
    parser.add_argument("--cache", type=Path, required=True, help="directory that keeps the downloaded sdist")
    parser.add_argument("--source", type=Path, help="local tree or tarball to use instead of downloading")
    args = parser.parse_args()
    try:
        fetch(args.source, args.dest, args.cache)
    except (FetchError, OverlayError, NoticeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
