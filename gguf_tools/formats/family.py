# SPDX-License-Identifier: MIT
"""The CB family as Python sees it: parameters, ggml type ids and sizes.

``cpu_kernels/formats/cb.toml`` lists the types; ``members`` is written from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.formats.members import MEMBERS

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

    ``type`` is the ggml type id, or -1 for members that only the references know. ``family`` names the type
    as it is asked for, the same for all super-blocks: "cb4".
    """

    name: str
    type: int
    bits: int
    pair: int
    sb: int
    family: str = ""

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


CB_FORMATS: dict[int, CBFormat] = {member[1]: CBFormat(*member) for member in MEMBERS}  # by ggml type id
