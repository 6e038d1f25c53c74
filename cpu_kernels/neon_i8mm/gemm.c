// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "../neon/gemm_panels.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(gemm, lutra_gemm_cb2_8x8_neon_i8mm, 2, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_8x8_neon_i8mm, 3, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_8x8_neon_i8mm, 4, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_8x8_neon_i8mm, 5, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_8x8_neon_i8mm, 6, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_8x8_neon_i8mm, 25, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb2_64_8x8_neon_i8mm, 2, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_64_8x8_neon_i8mm, 3, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_64_8x8_neon_i8mm, 4, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_64_8x8_neon_i8mm, 5, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_64_8x8_neon_i8mm, 6, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_64_8x8_neon_i8mm, 25, 64)
