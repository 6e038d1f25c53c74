"""The GGUF writer: complete files or none."""

from __future__ import annotations

import os
import resource
import signal

import numpy as np
import pytest
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import METADATA, sample_gguf

from gguf_tools.errors import LutraError
from gguf_tools.reader import GGUFFile
from gguf_tools.writer import GGUFWriter, TensorSpec

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
        GGUFWriter(tmp_path / "absent" / "o.gguf", METADATA, [SPEC])


def test_read_only_directory(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write into read-only directories")
    tmp_path.chmod(0o500)
    with pytest.raises(LutraError, match="Permission denied"):
        GGUFWriter(tmp_path / "o.gguf", METADATA, [SPEC])


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
