// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "body.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(batch, lutra_batch_cb2_1x1_ref, LUTRA_TYPE_CB2)
LUTRA_KERNEL(batch, lutra_batch_cb3_1x1_ref, LUTRA_TYPE_CB3)
LUTRA_KERNEL(batch, lutra_batch_cb4_1x1_ref, LUTRA_TYPE_CB4)
LUTRA_KERNEL(batch, lutra_batch_cb5_1x1_ref, LUTRA_TYPE_CB5)
LUTRA_KERNEL(batch, lutra_batch_cb6_1x1_ref, LUTRA_TYPE_CB6)
LUTRA_KERNEL(batch, lutra_batch_cb25_1x1_ref, LUTRA_TYPE_CB25)
LUTRA_KERNEL(batch, lutra_batch_cb2_64_1x1_ref, LUTRA_TYPE_CB2_64)
LUTRA_KERNEL(batch, lutra_batch_cb3_64_1x1_ref, LUTRA_TYPE_CB3_64)
LUTRA_KERNEL(batch, lutra_batch_cb4_64_1x1_ref, LUTRA_TYPE_CB4_64)
LUTRA_KERNEL(batch, lutra_batch_cb5_64_1x1_ref, LUTRA_TYPE_CB5_64)
LUTRA_KERNEL(batch, lutra_batch_cb6_64_1x1_ref, LUTRA_TYPE_CB6_64)
LUTRA_KERNEL(batch, lutra_batch_cb25_64_1x1_ref, LUTRA_TYPE_CB25_64)
