// SPDX-License-Identifier: MIT
// Two columns, of two chats or of the two planes of one: 4 rows x 2 columns, one vector of int32 sums each.
// The activations of a chunk are loaded once for 4 rows, and decoding is as in gemv.
#ifndef LUTRA_NEON_TWO_COLUMNS_NEON_H
#define LUTRA_NEON_TWO_COLUMNS_NEON_H

#include "cb_neon.h"

// acc[column][row % 4] += 4 rows of a super-block, whose first chunk this is.
LUTRA_INLINE void two_columns_tile(int cb, int sb, struct lutra_weights chunk, int first,
                                   const int8_t *const q[2], int32x4_t acc[2][4]) {
    const int rows = cb == 25 ? 2 : 1; // decoded together: CB25's share a vector of fifth bits
#pragma GCC unroll 4
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        int8x16_t x[2][4];
        load64(q[0] + c * LUTRA_CHUNK, x[0]);
        load64(q[1] + c * LUTRA_CHUNK, x[1]);
        __asm__ volatile("" : : : "memory"); // as in gemv: LDP, and one row after another
#pragma GCC unroll 4
        for (int row = 0; row < 4; row += rows) {
            int8x16_t w[2][4];
            for (int r = 0; r < rows; r++) {
                cb_row(cb, chunk, first + row + r, w[r]);
            }
            for (int i = 0; i < 2; i++) {
                for (int r = 0; r < rows; r++) {
                    acc[i][row + r] = dot64_in_place(acc[i][row + r], w[r], x[i]);
                }
                __asm__ volatile("" : : "w"(acc[i][row]), "w"(acc[i][row + rows - 1]) : "memory");
            }
        }
        chunk = cb_next(cb, chunk, 1);
        __asm__("" : "+r"(chunk.strips)); // this pointer: offsets from the first chunk do not fit into loads
    }
}

LUTRA_INLINE void two_columns(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights block,
                              const struct lutra_column *columns) {
    int32x4_t acc[2][4], before[2]; // never reset, as in gemv
    for (int i = 0; i < 2; i++) {
        before[i] = acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = vdupq_n_s32(0);
    }
    for (int64_t row = 0; row < n_strips * LUTRA_ROWS; row += LUTRA_ROWS) {
        float32x4_t y[2][2];
        for (int i = 0; i < 2; i++) {
            y[i][0] = y[i][1] = vdupq_n_f32(0);
        }
        const int8_t *q[2] = {columns[0].q, columns[1].q};
        for (uint64_t s = 0; s < (uint64_t)k / sb; s++) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                two_columns_tile(cb, sb, cb_chunk(cb, block, 0), 4 * half, q, acc);
                const float32x4_t d = load_d(block.strips + 8 * half);
                for (int i = 0; i < 2; i++) {
                    const int32x4_t after = sum_lanes(acc[i]);
                    const float32x4_t isum = vcvtq_f32_s32(vsubq_s32(after, before[i]));
                    y[i][half] = vfmaq_f32(y[i][half], vmulq_n_f32(d, columns[i].d[s]), isum);
                    before[i] = after;
                    __asm__ volatile("" : "+w"(y[i][half]) : : "memory");
                }
            }
            block = cb_block(cb, sb, block, 1);
            q[0] += sb;
            q[1] += sb;
            __asm__("" : "+r"(block.strips), "+r"(q[0]), "+r"(q[1])); // as in gemv
        }
        for (int i = 0; i < 2; i++) {
            vst1q_f32(columns[i].y + row, y[i][0]);
            vst1q_f32(columns[i].y + row + 4, y[i][1]);
        }
    }
}

#endif
