// SPDX-License-Identifier: MIT
// The batch body of the NEON kernels, with and without dot product: 2 rows x n columns meet in registers,
// n from 1 to 8, a constant of the inner functions; two columns have a body of their own.
#ifndef LUTRA_NEON_BATCH_NEON_H
#define LUTRA_NEON_BATCH_NEON_H

#include "two_columns_neon.h"

// sums[column] = rows 2 pair and 2 pair + 1 of one super-block, two lanes each. A row of a chunk is decoded
// once for all columns.
LUTRA_INLINE void batch_pair(int cb, int sb, int n, struct lutra_weights block, int pair,
                             const int8_t *const q[LUTRA_BATCH], int32x4_t sums[LUTRA_BATCH][4]) {
    int32x4_t acc[LUTRA_BATCH][2];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        acc[i][0] = acc[i][1] = vdupq_n_s32(0);
    }
#pragma GCC unroll 4
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
        int8x16_t w[2][4];
        cb_row(cb, chunk, 2 * pair, w[0]);
        cb_row(cb, chunk, 2 * pair + 1, w[1]);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            int8x16_t x[4];
            load64(q[i] + c * LUTRA_CHUNK, x);
            __asm__ volatile("" : : : "memory"); // as in gemv: LDP, and one column after another
            acc[i][0] = dot64_in_place(acc[i][0], w[0], x);
            acc[i][1] = dot64_in_place(acc[i][1], w[1], x);
            __asm__ volatile("" : : "w"(acc[i][0]), "w"(acc[i][1]) : "memory");
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        sums[i][pair] = vpaddq_s32(acc[i][0], acc[i][1]);
    }
}

LUTRA_INLINE void batch_2xn(int cb, int sb, int n, int64_t k, int64_t n_strips, struct lutra_weights block,
                            const struct lutra_column *columns) {
    if (n == 2) {
        two_columns(cb, sb, k, n_strips, block, columns);
        return;
    }
    for (int64_t row = 0; row < n_strips * LUTRA_ROWS; row += LUTRA_ROWS) {
        for (int64_t s = 0; s < k / sb; s++, block = cb_block(cb, sb, block, 1)) {
            const int8_t *q[LUTRA_BATCH];
            int32x4_t sums[LUTRA_BATCH][4];
            for (int i = 0; i < n; i++) {
                q[i] = columns[i].q + s * sb;
            }
            const int pairs = cb == 25 ? 2 : 1; // whose codes share a vector
#pragma GCC unroll 1
            for (int i = 0; i < 4; i += pairs) {
#pragma GCC unroll 2
                for (int pair = 0; pair < pairs; pair++) {
                    batch_pair(cb, sb, n, block, i / pairs * pairs + pair, q, sums);
                }
            }
            const float32x4_t d0 = load_d(block.strips), d1 = load_d(block.strips + 8);
            for (int i = 0; i < n; i++) {
                float *y = columns[i].y + row;
                gemm_store(s, d0, columns[i].d[s], vpaddq_s32(sums[i][0], sums[i][1]), y);
                gemm_store(s, d1, columns[i].d[s], vpaddq_s32(sums[i][2], sums[i][3]), y + 4);
            }
        }
    }
}

LUTRA_INLINE void batch(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                        const struct lutra_column *columns) {
    int8x16x2_t tables[LUTRA_TABLES];
    w = cb_prepare(cb, w, tables);
    LUTRA_CONSTANT(n, LUTRA_BATCH, batch_2xn(cb, sb, N, k, n_strips, w, columns))
}

#endif
