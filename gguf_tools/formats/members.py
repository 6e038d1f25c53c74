# SPDX-License-Identifier: MIT
"""The types of the CB family.

Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
"""

MEMBERS = (  # name, ggml type id, bits per code, weights per code, super-block, type
    ("CB2", 402, 4, 2, 256, "cb2"),
    ("CB3", 403, 3, 1, 256, "cb3"),
    ("CB4", 404, 4, 1, 256, "cb4"),
    ("CB2_64", 422, 4, 2, 64, "cb2"),
    ("CB3_64", 423, 3, 1, 64, "cb3"),
    ("CB4_64", 424, 4, 1, 64, "cb4"),
)
