// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "gemm_sve256.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(gemm, lutra_gemm_cb2_8x24_sve256, 2, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_8x24_sve256, 3, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_8x24_sve256, 4, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_8x24_sve256, 5, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_8x24_sve256, 6, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_8x24_sve256, 25, 256)
LUTRA_KERNEL(gemm, lutra_gemm_cb2_64_8x24_sve256, 2, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb3_64_8x24_sve256, 3, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb4_64_8x24_sve256, 4, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb5_64_8x24_sve256, 5, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb6_64_8x24_sve256, 6, 64)
LUTRA_KERNEL(gemm, lutra_gemm_cb25_64_8x24_sve256, 25, 64)
