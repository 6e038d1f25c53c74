// SPDX-License-Identifier: MIT
// The gemm body of the plain NEON kernels.
#ifndef LUTRA_NEON_GEMM_NEON_H
#define LUTRA_NEON_GEMM_NEON_H

#include "cb_neon.h"

// A super-block of one strip is decoded once and meets all columns: [k / 64][row][k % 64 / 16].
struct gemm_panel {
    int8x16_t w[256 / LUTRA_CHUNK][LUTRA_ROWS][4];
    float32x4_t d[2];
};

LUTRA_INLINE void gemm_decode(int cb, int sb, struct lutra_weights block, struct gemm_panel *panel) {
    panel->d[0] = load_d(block.strips);
    panel->d[1] = load_d(block.strips + 8);
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
#pragma GCC unroll 8
        for (int row = 0; row < LUTRA_ROWS; row++) {
            cb_row(cb, chunk, row, panel->w[c][row]);
        }
    }
}

// y[row] (+)= panel x column for super-block s.
LUTRA_INLINE void gemm_tile(int sb, int64_t s, const struct gemm_panel *panel,
                            const struct lutra_column *column, int64_t row) {
    int32x4_t acc[LUTRA_ROWS];
    for (int r = 0; r < LUTRA_ROWS; r++) {
        acc[r] = vdupq_n_s32(0);
    }
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        int8x16_t x[4];
        load64(column->q + s * sb + c * LUTRA_CHUNK, x);
#pragma GCC unroll 8
        for (int r = 0; r < LUTRA_ROWS; r++) {
            acc[r] = dot64(acc[r], panel->w[c][r], x);
        }
    }
    gemm_store(s, panel->d[0], column->d[s], sum_lanes(acc), column->y + row);
    gemm_store(s, panel->d[1], column->d[s], sum_lanes(acc + 4), column->y + row + 4);
}

LUTRA_INLINE void gemm(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                       const struct lutra_column *columns) {
    struct gemm_panel panel;
    int8x16x2_t tables[LUTRA_TABLES];
    w = cb_prepare(cb, w, tables);
    for (int64_t first = 0; first < n; first += GEMM_BLOCK) {
        const int64_t end = first + GEMM_BLOCK < n ? first + GEMM_BLOCK : n;
        struct lutra_weights block = w;
        for (int64_t row = 0; row < n_strips * LUTRA_ROWS; row += LUTRA_ROWS) {
            for (int64_t s = 0; s < k / sb; s++, block = cb_block(cb, sb, block, 1)) {
                gemm_decode(cb, sb, block, &panel);
                for (int64_t c = first; c < end; c++) {
                    gemm_tile(sb, s, &panel, &columns[c], row);
                }
            }
        }
    }
}

#endif
