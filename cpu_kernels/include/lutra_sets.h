// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
// Instruction sets, of each machine the worst first: the order of choice.
#ifndef LUTRA_SETS_H
#define LUTRA_SETS_H

enum lutra_set {
    LUTRA_SET_REF,
    LUTRA_SET_NEON,
    LUTRA_SET_NEON_DOTPROD,
    LUTRA_SET_NEON_I8MM,
    LUTRA_SET_SVE256,
    LUTRA_SET_AVX2,
    LUTRA_SET_AVX2_VNNI,
    LUTRA_SET_AVX512,
    LUTRA_SET_COUNT
};

// clang-format off
#define LUTRA_SET_NAMES \
    "ref", \
    "neon", \
    "neon_dotprod", \
    "neon_i8mm", \
    "sve256", \
    "avx2", \
    "avx2_vnni", \
    "avx512"
// clang-format on

#endif
