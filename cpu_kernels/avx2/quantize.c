// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "quantize_avx2.h"

#include "../dispatch/instantiate.h"

LUTRA_KERNEL(quantize, lutra_quantize_q8_256_1x1_avx2, 256)
LUTRA_KERNEL(quantize, lutra_quantize_q8_64_1x1_avx2, 64)
