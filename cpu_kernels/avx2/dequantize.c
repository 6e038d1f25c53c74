// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "dequantize_avx2.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(dequantize, lutra_dequantize_cb2_1x1_avx2, 2, 256)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb3_1x1_avx2, 3, 256)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb4_1x1_avx2, 4, 256)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb5_1x1_avx2, 5, 256)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb6_1x1_avx2, 6, 256)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb25_1x1_avx2, 25, 256)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb2_64_1x1_avx2, 2, 64)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb3_64_1x1_avx2, 3, 64)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb4_64_1x1_avx2, 4, 64)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb5_64_1x1_avx2, 5, 64)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb6_64_1x1_avx2, 6, 64)
LUTRA_KERNEL(dequantize, lutra_dequantize_cb25_64_1x1_avx2, 25, 64)
