// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "batch_neon.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(batch, lutra_batch_cb2_2x8_neon, 2, 256)
LUTRA_KERNEL(batch, lutra_batch_cb3_2x8_neon, 3, 256)
LUTRA_KERNEL(batch, lutra_batch_cb4_2x8_neon, 4, 256)
LUTRA_KERNEL(batch, lutra_batch_cb5_2x8_neon, 5, 256)
LUTRA_KERNEL(batch, lutra_batch_cb6_2x8_neon, 6, 256)
LUTRA_KERNEL(batch, lutra_batch_cb25_2x8_neon, 25, 256)
LUTRA_KERNEL(batch, lutra_batch_cb2_64_2x8_neon, 2, 64)
LUTRA_KERNEL(batch, lutra_batch_cb3_64_2x8_neon, 3, 64)
LUTRA_KERNEL(batch, lutra_batch_cb4_64_2x8_neon, 4, 64)
LUTRA_KERNEL(batch, lutra_batch_cb5_64_2x8_neon, 5, 64)
LUTRA_KERNEL(batch, lutra_batch_cb6_64_2x8_neon, 6, 64)
LUTRA_KERNEL(batch, lutra_batch_cb25_64_2x8_neon, 25, 64)
