// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "batch_neon_i8mm.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(batch, lutra_batch_cb2_4x8_neon_i8mm, 2, 256)
LUTRA_KERNEL(batch, lutra_batch_cb3_4x8_neon_i8mm, 3, 256)
LUTRA_KERNEL(batch, lutra_batch_cb4_4x8_neon_i8mm, 4, 256)
LUTRA_KERNEL(batch, lutra_batch_cb5_4x8_neon_i8mm, 5, 256)
LUTRA_KERNEL(batch, lutra_batch_cb6_4x8_neon_i8mm, 6, 256)
LUTRA_KERNEL(batch, lutra_batch_cb25_4x8_neon_i8mm, 25, 256)
LUTRA_KERNEL(batch, lutra_batch_cb2_64_4x8_neon_i8mm, 2, 64)
LUTRA_KERNEL(batch, lutra_batch_cb3_64_4x8_neon_i8mm, 3, 64)
LUTRA_KERNEL(batch, lutra_batch_cb4_64_4x8_neon_i8mm, 4, 64)
LUTRA_KERNEL(batch, lutra_batch_cb5_64_4x8_neon_i8mm, 5, 64)
LUTRA_KERNEL(batch, lutra_batch_cb6_64_4x8_neon_i8mm, 6, 64)
LUTRA_KERNEL(batch, lutra_batch_cb25_64_4x8_neon_i8mm, 25, 64)
