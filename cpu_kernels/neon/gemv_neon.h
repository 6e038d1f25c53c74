// The gemv body of the NEON kernels, with and without dot product: 8 rows x 1 column, one vector of int32
// sums per row. `cb` and `sb` are constants at every call.
#ifndef LUTRA_NEON_GEMV_NEON_H
#define LUTRA_NEON_GEMV_NEON_H

#include "cb_neon.h"

// acc += 64 weights of 8 rows. Left alone, compilers load the whole chunk first, which takes more registers
// than there are; the CPU finds the loads of the next rows by itself. So two rows are complete before the
// next two begin.
LUTRA_INLINE void gemv_chunk(int cb, const uint8_t *chunk, const int8_t *library, const int8_t *q,
                             int32x4_t acc[LUTRA_ROWS]) {
    int8x16_t x[4];
    load64(q, x);
    __asm__ volatile("" : : : "memory"); // and no load of x between those of the rows: LDP takes two
#pragma GCC unroll 4
    for (int row = 0; row < LUTRA_ROWS; row += 2) {
        int8x16_t w[2][4];
        cb_row(cb, chunk, library, row, w[0]);
        cb_row(cb, chunk, library, row + 1, w[1]);
        acc[row] = dot64(acc[row], w[0], x);
        acc[row + 1] = dot64(acc[row + 1], w[1], x);
        __asm__ volatile("" : : "w"(acc[row]), "w"(acc[row + 1]) : "memory");
    }
}

LUTRA_INLINE void gemv_8x1(int cb, int sb, int64_t k, int64_t n_strips, const uint8_t *block,
                           const int8_t *library, const int8_t *q, const float *d, float *y) {
    // acc is never reset: modulo 2^32, the sum of a super-block is what the sums have grown by
    int32x4_t acc[LUTRA_ROWS], before0 = vdupq_n_s32(0), before1 = vdupq_n_s32(0);
#pragma GCC unroll 8
    for (int row = 0; row < LUTRA_ROWS; row++) {
        acc[row] = vdupq_n_s32(0);
    }
    const int chunks = sb / LUTRA_CHUNK, step = chunks < 2 ? 1 : 2; // chunks per turn of the loop
    for (int64_t strip = 0; strip < n_strips; strip++) {
        float32x4_t y0 = vdupq_n_f32(0), y1 = vdupq_n_f32(0);
        const int8_t *x = q;
        for (int64_t s = 0; s < k / sb; s++) {
            const float32x4_t d0 = vmulq_n_f32(load_d(block), d[s]);
            const float32x4_t d1 = vmulq_n_f32(load_d(block + 8), d[s]);
            block += 2 * LUTRA_ROWS;
            for (int c = 0; c < chunks; c += step) {
                gemv_chunk(cb, block, library, x, acc);
                if (step == 2) {
                    gemv_chunk(cb, block + cb_chunk_bytes(cb), library, x + LUTRA_CHUNK, acc);
                }
                block += step * cb_chunk_bytes(cb);
                x += step * LUTRA_CHUNK;
            }
            const int32x4_t after0 = sum_lanes(acc), after1 = sum_lanes(acc + 4);
            y0 = vfmaq_f32(y0, d0, vcvtq_f32_s32(vsubq_s32(after0, before0)));
            y1 = vfmaq_f32(y1, d1, vcvtq_f32_s32(vsubq_s32(after1, before1)));
            before0 = after0;
            before1 = after1;
            __asm__("" : "+r"(block), "+r"(x)); // these two pointers, not others computed from s
        }
        vst1q_f32(y, y0);
        vst1q_f32(y + 4, y1);
        y += LUTRA_ROWS;
    }
}

#endif
