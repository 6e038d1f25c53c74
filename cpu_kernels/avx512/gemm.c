// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "gemm_avx512.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(gemm, lutra_gemm_cb2_32x8_avx512, 2, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_32x8_avx512, 3, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_32x8_avx512, 4, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_32x8_avx512, 5, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_32x8_avx512, 6, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_32x8_avx512, 25, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb2_64_32x8_avx512, 2, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_64_32x8_avx512, 3, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_64_32x8_avx512, 4, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_64_32x8_avx512, 5, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_64_32x8_avx512, 6, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_64_32x8_avx512, 25, 64)
