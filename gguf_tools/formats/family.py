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
class Codes:
    """A layer of codes: ``bits`` per code, ``pair`` weights per code."""

    bits: int
    pair: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the codes of 64 weights x 8 rows."""
        return CHUNK * ROWS // 8 * self.bits // self.pair

    @property
    def library_bytes(self) -> int:
        """Bytes of the library: 256 tables of ``pair`` x ``2**bits`` int8 entries."""
        return TABLES * (self.pair << self.bits)

    @property
    def library_shape(self) -> tuple[int, int, int]:
        """Shape of the library as an int8 array: (table, weight of the pair, code)."""
        return (TABLES, self.pair, 1 << self.bits)


@dataclass(frozen=True)
class CBFormat:
    """One member of the family: ``bits`` per code, ``pair`` weights per code, ``sb`` per super-block.

    ``type`` is the ggml type id, or -1 for members that only the references know. ``family`` names the type
    as it is asked for, the same for all super-blocks: "cb4". ``second``: the layer of codes that a layered
    type adds under the same selectors and scales.
    """

    name: str
    type: int
    bits: int
    pair: int
    sb: int
    family: str = ""
    second: Codes | None = None

    @property
    def layers(self) -> tuple[Codes, ...]:
        """One or two."""
        first = Codes(self.bits, self.pair)
        return (first, self.second) if self.second else (first,)

    @property
    def code_bits(self) -> float:
        """Bits of codes per weight, in all layers."""
        return sum(layer.bits / layer.pair for layer in self.layers)

    @property
    def bpw(self) -> float:
        """Bits per weight without the library."""
        return self.code_bits + 8 / GROUP + 16 / self.sb

    @property
    def block_bytes(self) -> int:
        """Bytes of one strip-super-block: 8 rows x ``sb`` weights, the first layer."""
        return 2 * ROWS + (2 * ROWS + self.layers[0].chunk_bytes) * (self.sb // CHUNK)

    @property
    def second_bytes(self) -> int:
        """Bytes of the codes that the second layer has for 8 rows x ``sb`` weights, 0 without one."""
        return self.second.chunk_bytes * (self.sb // CHUNK) if self.second else 0

    @property
    def library_bytes(self) -> int:
        """Bytes of the libraries of all layers."""
        return sum(layer.library_bytes for layer in self.layers)

    @property
    def library_shape(self) -> tuple[int, int, int]:
        """Shape of the first layer's library as an int8 array: (table, weight of the pair, code)."""
        return self.layers[0].library_shape

    def row_bytes(self, k: int) -> int:
        """Bytes of one row of ``k`` weights in all layers, an eighth of its strip."""
        return (self.block_bytes + self.second_bytes) // ROWS * (k // self.sb)

    def tensor_bytes(self, rows: int, k: int) -> int:
        """Bytes of a whole tensor of ``rows`` x ``k`` weights, libraries included."""
        return rows * self.row_bytes(k) + self.library_bytes


CB_FORMATS: dict[int, CBFormat] = {  # by ggml type id
    id_: CBFormat(name, id_, bits, pair, sb, family, *(Codes(*layer) for layer in second))
    for name, id_, bits, pair, sb, family, *second in MEMBERS
}


def first_layer(fmt: CBFormat) -> CBFormat | None:
    """The type of a tensor of ``fmt`` that is cut down to its first layer; None if there is no such type."""
    alone = (f for f in CB_FORMATS.values() if (f.bits, f.pair, f.sb) == (fmt.bits, fmt.pair, fmt.sb))
    return next((f for f in alone if not f.second), None)
