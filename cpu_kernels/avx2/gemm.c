// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "gemm_avx2.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(gemm, lutra_gemm_cb2_16x4_avx2, 2, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_16x4_avx2, 3, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_16x4_avx2, 4, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_16x4_avx2, 5, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_16x4_avx2, 6, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_16x4_avx2, 25, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb2_64_16x4_avx2, 2, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_64_16x4_avx2, 3, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_64_16x4_avx2, 4, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_64_16x4_avx2, 5, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_64_16x4_avx2, 6, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_64_16x4_avx2, 25, 64)
