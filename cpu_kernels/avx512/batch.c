// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "gemv_avx512.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(batch, lutra_batch_cb2_8x8_avx512, 2, 256)
LUTRA_KERNEL(batch, lutra_batch_cb3_8x8_avx512, 3, 256)
LUTRA_KERNEL(batch, lutra_batch_cb4_8x8_avx512, 4, 256)
LUTRA_KERNEL(batch, lutra_batch_cb5_8x8_avx512, 5, 256)
LUTRA_KERNEL(batch, lutra_batch_cb6_8x8_avx512, 6, 256)
LUTRA_KERNEL(batch, lutra_batch_cb25_8x8_avx512, 25, 256)
LUTRA_KERNEL(batch, lutra_batch_cb2_64_8x8_avx512, 2, 64)
LUTRA_KERNEL(batch, lutra_batch_cb3_64_8x8_avx512, 3, 64)
LUTRA_KERNEL(batch, lutra_batch_cb4_64_8x8_avx512, 4, 64)
LUTRA_KERNEL(batch, lutra_batch_cb5_64_8x8_avx512, 5, 64)
LUTRA_KERNEL(batch, lutra_batch_cb6_64_8x8_avx512, 6, 64)
LUTRA_KERNEL(batch, lutra_batch_cb25_64_8x8_avx512, 25, 64)
