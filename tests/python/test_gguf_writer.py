# SPDX-License-Identifier: MIT
"""The GGUF writer: complete files or none."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import METADATA, sample_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools import writer as writer_module
from gguf_tools.errors import LutraError
from gguf_tools.reader import SCALARS, GGUFFile
from gguf_tools.writer import GGUFWriter, TensorSpec, require_replaceable

SPEC = TensorSpec("w.weight", 0, (1024, 1024), 4 << 20)


def write(path, data, times=1):
    """Write a file of one tensor, SPEC."""
    with GGUFWriter(path, METADATA, [SPEC]) as writer:
        for _ in range(times):
            writer.write(data)


def left_in(directory):
    return sorted(p.name for p in directory.iterdir())


def test_pieces_of_any_size(tmp_path):
    weights = np.arange(1000, dtype=np.float32)
    specs = [TensorSpec("a", 0, (10, 100), 4000), TensorSpec("b", 0, (1000,), 4000)]
    with GGUFWriter(tmp_path / "out.gguf", METADATA, specs) as writer:
        writer.write(weights[:7])
        writer.write(weights[7:].tobytes())
        writer.write(weights.reshape(10, 100).T.copy().T)  # not contiguous
        assert left_in(tmp_path) == [".out.gguf.lutra-partial"]
    assert left_in(tmp_path) == ["out.gguf"]
    file = GGUFFile(tmp_path / "out.gguf")
    for tensor in file.tensors.values():
        assert np.array_equal(file.data(tensor).view(np.float32), weights)


@pytest.mark.parametrize("n_bytes", [0, 5, (4 << 20) - 4, (4 << 20) + 4])
def test_wrong_size_leaves_nothing(tmp_path, n_bytes):
    with (
        pytest.raises(ValueError, match=r"w\.weight"),
        GGUFWriter(tmp_path / "o", METADATA, [SPEC]) as writer,
    ):
        writer.write(bytes(n_bytes))
    assert left_in(tmp_path) == []


def test_an_error_keeps_the_old_file(tmp_path):
    path = sample_gguf(tmp_path / "out.gguf")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(path, None)
    assert left_in(tmp_path) == ["out.gguf"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("w", 404, (8, 255), 100), "multiple of 256"),
        (TensorSpec("w", 404, (8, 256), 1104), "takes 5200 bytes"),  # the library is missing
        (TensorSpec("w", 99, (8, 256), 100), "unknown"),
    ],
)
def test_declarations_are_checked(tmp_path, spec, message):
    with pytest.raises(ValueError, match=message):
        GGUFWriter(tmp_path / "o", METADATA, [spec])
    with pytest.raises(ValueError, match="twice"):
        GGUFWriter(tmp_path / "o", METADATA, [SPEC, SPEC])
    with pytest.raises(ValueError, match="key 'k'"):
        GGUFWriter(tmp_path / "o", {"k": GGUFValue(-1, GGUFValueType.UINT32)}, [SPEC])
    assert left_in(tmp_path) == []


def test_directory_that_is_not_there(tmp_path):
    with pytest.raises(LutraError, match=r"o\.gguf: cannot be written: No such file"):
        write(tmp_path / "absent" / "o.gguf", b"")


def test_read_only_directory(tmp_path, monkeypatch):
    """Not a real one: root may write there."""

    def refuse(*arguments):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LutraError, match="Permission denied"):
        write(tmp_path / "o.gguf", b"")


@pytest.mark.parametrize("limit", [100, 4096, 1 << 20, 4 << 20])
def test_no_room(tmp_path, limit):
    """A file-size limit stands in for a full disk: writes, or the flush at the end, fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(LutraError, match=r"o\.gguf: cannot be written: File too large"):
            write(tmp_path / "o.gguf", bytes(4096), times=1024)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert left_in(tmp_path) == []


def test_disk_full_at_the_flush(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LutraError, match="No space left"):
        write(tmp_path / "o.gguf", bytes(SPEC.nbytes))
    assert left_in(tmp_path) == []


# ---- key/values ------------------------------------------------------------------------------


def values_of(kind):
    """Values that a type can hold, as they are read back."""
    if kind == GGUFValueType.STRING:
        return st.text(st.characters(exclude_categories=["Cs"]))
    if kind == GGUFValueType.BOOL:
        return st.booleans()
    if kind in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
        return st.floats(width=32 if kind == GGUFValueType.FLOAT32 else 64, allow_nan=False)
    bits = 8 * struct.calcsize("<" + SCALARS[kind])
    return (
        st.integers(0, (1 << bits) - 1)
        if "U" in kind.name
        else st.integers(-1 << bits - 1, (1 << bits - 1) - 1)
    )


ITEMS = [kind for kind in GGUFValueType if kind != GGUFValueType.ARRAY]
KEY_VALUES = st.sampled_from(ITEMS).flatmap(
    lambda kind: st.one_of(
        values_of(kind).map(lambda v: GGUFValue(v, kind)),
        st.lists(values_of(kind), max_size=5).map(lambda v: GGUFValue(v, GGUFValueType.ARRAY, kind)),
        st.just(GGUFValue([], GGUFValueType.ARRAY, kind)),
    )
)


def write_values(directory, metadata):
    path = Path(directory) / "o.gguf"
    with GGUFWriter(path, metadata, [TensorSpec("w", 0, (1,), 4)]) as writer:
        writer.write(bytes(4))
    return path


@settings(deadline=None)  # a loaded machine is no fault
@given(st.dictionaries(st.text("abc.", min_size=1), KEY_VALUES, max_size=8))
def test_values_are_read_as_they_were_written(metadata):
    """Every type, alone and in arrays of any length, by our reader and by the gguf package's."""
    with tempfile.TemporaryDirectory() as directory:
        path = write_values(directory, metadata)
        ours, theirs = GGUFFile(path).metadata, GGUFReader(path).fields
        assert {key: ours[key] for key in metadata} == metadata
        for key, value in metadata.items():
            assert theirs[key].contents() == value.value
            if value.type == GGUFValueType.ARRAY:
                assert theirs[key].types[1:] == [value.sub_type] * bool(value.value)


@pytest.mark.parametrize("kind", ITEMS)
def test_arrays_keep_their_type(tmp_path, kind):
    value = GGUFValue([], GGUFValueType.ARRAY, kind)
    assert GGUFFile(write_values(tmp_path, {"k": value})).metadata["k"] == value


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        (["a"], GGUFValueType.STRING),
        ([b"a", b"\xff"], GGUFValueType.STRING),
        ([True], GGUFValueType.BOOL),
        ([1, 2], GGUFValueType.INT32),
        ([0.5], GGUFValueType.FLOAT32),
        (b"\x00\xff", GGUFValueType.UINT8),
    ],
)
def test_type_of_an_array_that_does_not_say(tmp_path, items, kind):
    """As the gguf package writes what its own ``add_array`` collects."""
    read = GGUFFile(write_values(tmp_path, {"k": GGUFValue(items, GGUFValueType.ARRAY)})).metadata["k"]
    assert read.sub_type == kind
    assert [
        v.encode("utf-8", "surrogateescape") if isinstance(items[0], bytes) else v for v in read.value
    ] == (list(items))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GGUFValue([], GGUFValueType.ARRAY), "ARRAY: an empty array must say"),
        (GGUFValue([[1]], GGUFValueType.ARRAY), "ARRAY: arrays of arrays"),
        (GGUFValue([[]], GGUFValueType.ARRAY, GGUFValueType.ARRAY), "ARRAY: arrays of arrays"),
        (GGUFValue([1, 300], GGUFValueType.ARRAY, GGUFValueType.UINT8), "ARRAY"),
        (GGUFValue(["a", 1], GGUFValueType.ARRAY), "ARRAY"),
        (GGUFValue(-1, GGUFValueType.UINT64), "UINT64"),
        (GGUFValue(1e39, GGUFValueType.FLOAT32), "FLOAT32"),
        (GGUFValue("\ud800", GGUFValueType.STRING), "STRING"),
        (GGUFValue(5, GGUFValueType.STRING), "STRING"),
        (GGUFValue(5, GGUFValueType.ARRAY, GGUFValueType.INT32), "ARRAY"),
    ],
)
def test_values_that_do_not_fit_their_type(tmp_path, value, message):
    with pytest.raises(ValueError, match=f"key 'k' cannot be written as {message}"):
        write_values(tmp_path, {"k": value})
    assert left_in(tmp_path) == []


# ---- outputs that are no files ---------------------------------------------------------------


@pytest.fixture
def special(tmp_path, request):
    """A path that is no file. The device is a terminal: nothing can replace it, whatever the code does."""
    path = tmp_path / "o.gguf"
    if request.param == "device":
        ends = os.openpty()
        yield Path(os.ttyname(ends[1]))
        for end in ends:
            os.close(end)
        return
    if request.param == "directory":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    yield path


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize(
    ("special", "kind"),
    [(kind, kind) for kind in ("directory", "pipe", "socket", "device")],
    indirect=["special"],
)
def test_only_files_are_replaced(tmp_path, special, kind, through_link):
    path = special
    mode = path.stat().st_mode
    if through_link:
        path = tmp_path / "link"
        path.symlink_to(special)
    before = left_in(tmp_path)
    for refused in (require_replaceable, lambda path: GGUFWriter(path, METADATA, [SPEC])):
        with pytest.raises(LutraError, match=f"{path}: is a {kind}; name a file"):
            refused(path)
    assert left_in(tmp_path) == before
    assert path.stat().st_mode == mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_leads_to_the_file_that_is_written(tmp_path, exists):
    """Also one that leads to nothing yet; the partial file lies beside the target, on its disk."""
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "t.gguf", tmp_path / "o.gguf"
    link.symlink_to("disk/t.gguf")
    if exists:
        target.write_bytes(b"old")
    with GGUFWriter(link, METADATA, [SPEC]) as writer:
        writer.write(bytes(SPEC.nbytes))
        assert sorted(left_in(target.parent)) == [".t.gguf.lutra-partial", *(["t.gguf"] if exists else [])]
    assert link.is_symlink()
    assert left_in(target.parent) == ["t.gguf"]
    assert list(GGUFFile(link).tensors) == [SPEC.name]


def test_links_that_lead_nowhere(tmp_path):
    link = tmp_path / "o.gguf"
    link.symlink_to("o.gguf")
    with pytest.raises(LutraError, match=r"o\.gguf: cannot be written: Too many levels"):
        require_replaceable(link)
    link.unlink()
    link.symlink_to("absent/o.gguf")
    with pytest.raises(LutraError, match=r"absent/o\.gguf: cannot be written: No such file"):
        write(link, bytes(SPEC.nbytes))
    assert link.is_symlink()


# ---- partial files ---------------------------------------------------------------------------


def test_one_writer_at_a_time(tmp_path):
    """The second is refused and harms nothing, until the first is done or has failed."""
    path = tmp_path / "o.gguf"
    with GGUFWriter(path, METADATA, [SPEC]) as first:
        first.write(bytes(100))
        with pytest.raises(LutraError, match=r"o\.gguf: is being written by another process"):
            write(path, b"")
        first.write(bytes(SPEC.nbytes - 100))
    complete = path.read_bytes()
    with pytest.raises(ValueError, match="0 of"):
        write(path, b"")
    write(path, bytes(SPEC.nbytes))
    assert path.read_bytes() == complete
    assert left_in(tmp_path) == ["o.gguf"]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    write(tmp_path / "o.gguf", bytes(SPEC.nbytes))
    complete = (tmp_path / "o.gguf").read_bytes()
    (tmp_path / ".o.gguf.lutra-partial").write_bytes(b"x" * (len(complete) + 1000))
    write(tmp_path / "o.gguf", bytes(SPEC.nbytes))
    assert (tmp_path / "o.gguf").read_bytes() == complete
    assert left_in(tmp_path) == ["o.gguf"]


def test_a_partial_file_that_was_renamed_before_it_was_locked(tmp_path, monkeypatch):
    """Between opening and locking it the other writer finishes: its file must not be emptied."""
    path = tmp_path / "o.gguf"
    first = GGUFWriter(path, METADATA, [SPEC]).__enter__()
    first.write(bytes(SPEC.nbytes))
    flock = writer_module.fcntl.flock

    def finish_first(descriptor, how):
        monkeypatch.undo()
        first.__exit__(None, None, None)
        flock(descriptor, how)

    monkeypatch.setattr(writer_module.fcntl, "flock", finish_first)
    with pytest.raises(ValueError, match="0 of"):  # the second's
        write(path, b"")
    assert list(GGUFFile(path).tensors) == [SPEC.name]
    assert left_in(tmp_path) == ["o.gguf"]
