# SPDX-License-Identifier: MIT
"""The types of the CB family.

Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
"""

from typing import Any

# name, ggml id, bits per code, weights per code, super-block, type, (bits, weights) of layer two
MEMBERS: tuple[tuple[Any, ...], ...] = (
    ("CB2", 402, 4, 2, 256, "cb2"),
    ("CB3", 403, 3, 1, 256, "cb3"),
    ("CB4", 404, 4, 1, 256, "cb4"),
    ("CB5", 405, 4, 1, 256, "cb5", (1, 1)),
    ("CB6", 406, 4, 1, 256, "cb6", (4, 2)),
    ("CB25", 407, 5, 2, 256, "cb25"),
    ("CB2_64", 422, 4, 2, 64, "cb2"),
    ("CB3_64", 423, 3, 1, 64, "cb3"),
    ("CB4_64", 424, 4, 1, 64, "cb4"),
    ("CB5_64", 425, 4, 1, 64, "cb5", (1, 1)),
    ("CB6_64", 426, 4, 1, 64, "cb6", (4, 2)),
    ("CB25_64", 427, 5, 2, 64, "cb25"),
)
