// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "../neon/batch_neon.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(batch, lutra_batch_cb2_2x8_neon_dotprod, 2, 256)
LUTRA_KERNEL(batch, lutra_batch_cb3_2x8_neon_dotprod, 3, 256)
LUTRA_KERNEL(batch, lutra_batch_cb4_2x8_neon_dotprod, 4, 256)
LUTRA_KERNEL(batch, lutra_batch_cb5_2x8_neon_dotprod, 5, 256)
LUTRA_KERNEL(batch, lutra_batch_cb6_2x8_neon_dotprod, 6, 256)
LUTRA_KERNEL(batch, lutra_batch_cb25_2x8_neon_dotprod, 25, 256)
LUTRA_KERNEL(batch, lutra_batch_cb2_64_2x8_neon_dotprod, 2, 64)
LUTRA_KERNEL(batch, lutra_batch_cb3_64_2x8_neon_dotprod, 3, 64)
LUTRA_KERNEL(batch, lutra_batch_cb4_64_2x8_neon_dotprod, 4, 64)
LUTRA_KERNEL(batch, lutra_batch_cb5_64_2x8_neon_dotprod, 5, 64)
LUTRA_KERNEL(batch, lutra_batch_cb6_64_2x8_neon_dotprod, 6, 64)
LUTRA_KERNEL(batch, lutra_batch_cb25_64_2x8_neon_dotprod, 25, 64)
