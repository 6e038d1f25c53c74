// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "../avx2/batch_avx2.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(gemv, lutra_gemv_cb2_4x1_avx2_vnni, 2, 256)
LUTRA_KERNEL(gemv, lutra_gemv_cb3_4x1_avx2_vnni, 3, 256)
LUTRA_KERNEL(gemv, lutra_gemv_cb4_4x1_avx2_vnni, 4, 256)
LUTRA_KERNEL(gemv, lutra_gemv_cb5_4x1_avx2_vnni, 5, 256)
LUTRA_KERNEL(gemv, lutra_gemv_cb6_4x1_avx2_vnni, 6, 256)
LUTRA_KERNEL(gemv, lutra_gemv_cb25_4x1_avx2_vnni, 25, 256)
LUTRA_KERNEL(gemv, lutra_gemv_cb2_64_4x1_avx2_vnni, 2, 64)
LUTRA_KERNEL(gemv, lutra_gemv_cb3_64_4x1_avx2_vnni, 3, 64)
LUTRA_KERNEL(gemv, lutra_gemv_cb4_64_4x1_avx2_vnni, 4, 64)
LUTRA_KERNEL(gemv, lutra_gemv_cb5_64_4x1_avx2_vnni, 5, 64)
LUTRA_KERNEL(gemv, lutra_gemv_cb6_64_4x1_avx2_vnni, 6, 64)
LUTRA_KERNEL(gemv, lutra_gemv_cb25_64_4x1_avx2_vnni, 25, 64)
