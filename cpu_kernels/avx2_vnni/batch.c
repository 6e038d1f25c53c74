// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "../avx2/batch_avx2.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(batch, lutra_batch_cb2_2x4_avx2_vnni, 2, 256)
LUTRA_KERNEL(batch, lutra_batch_cb3_2x4_avx2_vnni, 3, 256)
LUTRA_KERNEL(batch, lutra_batch_cb4_2x4_avx2_vnni, 4, 256)
LUTRA_KERNEL(batch, lutra_batch_cb5_2x4_avx2_vnni, 5, 256)
LUTRA_KERNEL(batch, lutra_batch_cb6_2x4_avx2_vnni, 6, 256)
LUTRA_KERNEL(batch, lutra_batch_cb25_2x4_avx2_vnni, 25, 256)
LUTRA_KERNEL(batch, lutra_batch_cb2_64_2x4_avx2_vnni, 2, 64)
LUTRA_KERNEL(batch, lutra_batch_cb3_64_2x4_avx2_vnni, 3, 64)
LUTRA_KERNEL(batch, lutra_batch_cb4_64_2x4_avx2_vnni, 4, 64)
LUTRA_KERNEL(batch, lutra_batch_cb5_64_2x4_avx2_vnni, 5, 64)
LUTRA_KERNEL(batch, lutra_batch_cb6_64_2x4_avx2_vnni, 6, 64)
LUTRA_KERNEL(batch, lutra_batch_cb25_64_2x4_avx2_vnni, 25, 64)
