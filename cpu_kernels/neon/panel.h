// SPDX-License-Identifier: MIT
// The operands of a gemm on decoded panels, and what its parts share. gemm_panels.h has the order, and the
// set the parts, each with its own order of the bytes:
//
//     gemm_decode      a block of a strip -> its panel
//     gemm_pack        sb activations of `width` columns -> x of a tile
//     gemm_multiply    sums[2 * width] += panel x tile
//     gemm_finish      the sums of one strip -> y[row] to y[row + 7] of n columns
#ifndef LUTRA_NEON_PANEL_H
#define LUTRA_NEON_PANEL_H

#include "cb_neon.h"

enum {
    GEMM_STRIPS = 16, // 32 KiB of panels
    GEMM_COLUMNS = 64 // as many of sums
};

// Entries and d of 8 rows x sb weights.
struct gemm_panel {
    int8x16_t w[LUTRA_ROWS * 256 / 16];
    float32x4_t d[4];
};

// q and d of up to 8 columns x sb weights.
struct gemm_tile {
    int8x16_t x[8 * 256 / 16];
    float d[8];
};

// Two vectors of sums for every column.
typedef float32x4_t gemm_sums[2 * GEMM_COLUMNS];

// The float of an integer sum i, |i| <= 2^22, without a conversion: the accumulator starts at the bits
// of 1.5 * 2^23, a float whose last place is 1, so that it holds the float 1.5 * 2^23 + i.
LUTRA_INLINE int32x4_t sum_start(void) {
    return vreinterpretq_s32_f32(vdupq_n_f32(0x1.8p23f));
}

LUTRA_INLINE float32x4_t sum_float(int32x4_t acc) {
    return vsubq_f32(vreinterpretq_f32_s32(acc), vdupq_n_f32(0x1.8p23f));
}

#endif
