"""The CB family as Python sees it: parameters, ggml type ids and sizes.

``cpu_kernels/formats/cb.h`` defines the format; this module repeats its numbers and
``tests/format`` holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

LAYOUT_VERSION = 1
LAYOUT_VERSION_KEY = "lutra.layout.version"
CHECKSUMS_KEY = "lutra.tensors.crc32"  # of each tensor's data, in the order of the file

GROUP = 32  # weights per selector
ROWS = 8  # rows per strip
CHUNK = 64  # weights per row and chunk
LANE = 16  # codes per lane vector
TABLES = 256  # tables per library


@dataclass(frozen=True)
class CBFormat:
    """One member of the family: ``bits`` per code, ``pair`` weights per code, ``sb`` per super-block.

    ``type`` is the ggml type id, or -1 for members that only the references know.
    """

    name: str
    type: int
    bits: int
    pair: int
    sb: int

    @property
    def bpw(self) -> float:
        """Bits per weight without the library."""
        return self.bits / self.pair + 8 / GROUP + 16 / self.sb

    @property
    def chunk_code_bytes(self) -> int:
        """Bytes of the codes of 64 weights x 8 rows."""
        return CHUNK * ROWS // 8 * self.bits // self.pair

    @property
    def block_bytes(self) -> int:
        """Bytes of one strip-super-block: 8 rows x ``sb`` weights."""
        return 2 * ROWS + (2 * ROWS + self.chunk_code_bytes) * (self.sb // CHUNK)

    @property
    def library_bytes(self) -> int:
        """Bytes of the library: 256 tables of ``pair`` x ``2**bits`` int8 entries."""
        return TABLES * (self.pair << self.bits)

    @property
    def library_shape(self) -> tuple[int, int, int]:
        """Shape of the library as an int8 array: (table, weight of the pair, code)."""
        return (TABLES, self.pair, 1 << self.bits)

    def row_bytes(self, k: int) -> int:
        """Bytes of one row of ``k`` weights, an eighth of its strip."""
        return self.block_bytes // ROWS * (k // self.sb)

    def tensor_bytes(self, rows: int, k: int) -> int:
        """Bytes of a whole tensor of ``rows`` x ``k`` weights, library included."""
        return rows * self.row_bytes(k) + self.library_bytes


CB_FORMATS: dict[int, CBFormat] = {
    f.type: f
    for f in (
        CBFormat("CB2", 402, 4, 2, 256),
        CBFormat("CB3", 403, 3, 1, 256),
        CBFormat("CB4", 404, 4, 1, 256),
        CBFormat("CB2_64", 422, 4, 2, 64),
        CBFormat("CB3_64", 423, 3, 1, 64),
        CBFormat("CB4_64", 424, 4, 1, 64),
    )
}


def cb_format(name: str, k: int, rows: int) -> CBFormat | None:
    """The member of family ``name`` ("cb2", "cb3", "cb4") for a tensor of ``rows`` x ``k`` weights.

    None when the tensor cannot or should not be CB: ``k`` not a multiple of 64, ``rows`` not a
    multiple of 8, or a library larger than the rows it serves.
    """
    sb = 256 if k % 256 == 0 else 64
    wanted = name.upper() if sb == 256 else f"{name.upper()}_64"
    fmt = next((f for f in CB_FORMATS.values() if f.name == wanted), None)
    if fmt is None:
        raise ValueError(f"{name!r} is not a CB type; choose cb2, cb3 or cb4")
    if rows == 0 or k == 0 or k % sb or rows % ROWS:
        return None
    return fmt if rows * fmt.row_bytes(k) >= fmt.library_bytes else None
