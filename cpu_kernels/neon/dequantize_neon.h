// SPDX-License-Identifier: MIT
// The dequantize body of the NEON kernels: one row of a strip to floats.
#ifndef LUTRA_NEON_DEQUANTIZE_NEON_H
#define LUTRA_NEON_DEQUANTIZE_NEON_H

#include "cb_neon.h"

// y[16] = d * entries.
LUTRA_INLINE void dequantize_16(int8x16_t entries, float d, float *y) {
    const int16x8_t low = vmovl_s8(vget_low_s8(entries)), high = vmovl_high_s8(entries);
    vst1q_f32(y, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), d));
    vst1q_f32(y + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(low)), d));
    vst1q_f32(y + 8, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), d));
    vst1q_f32(y + 12, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(high)), d));
}

LUTRA_INLINE void dequantize(int cb, int sb, int64_t k, struct lutra_weights w, int row, float *y) {
    int8x16x2_t tables[LUTRA_TABLES];
    struct lutra_weights block = cb_prepare(cb, w, tables);
    for (int64_t s = 0; s < k / sb; s++, block = cb_block(cb, sb, block, 1)) {
        float d_of_row[LUTRA_ROWS];
        vst1q_f32(d_of_row, load_d(block.strips));
        vst1q_f32(d_of_row + 4, load_d(block.strips + 8));
        const float d = d_of_row[row];
        for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
            int8x16_t w[4];
            cb_row(cb, cb_chunk(cb, block, c), row, w);
            for (int i = 0; i < 4; i++, y += 16) {
                dequantize_16(w[i], d, y);
            }
        }
    }
}

#endif
