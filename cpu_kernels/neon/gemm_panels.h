// SPDX-License-Identifier: MIT
// The order of a gemm on decoded panels, for the sets with products of 4 or 8 bytes per lane.
//
// A super-block of GEMM_STRIPS strips is decoded into panels. Then the activations of 8 columns at a time
// are packed into a tile, which meets all panels. The float sums of the strips and of up to GEMM_COLUMNS
// columns stay on the stack until their rows end.
#ifndef LUTRA_NEON_GEMM_PANELS_H
#define LUTRA_NEON_GEMM_PANELS_H

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "../neon_i8mm/panel_neon_i8mm.h"
#else
#include "../neon_dotprod/panel_neon_dotprod.h"
#endif

#include <string.h>

// Super-block s of the n <= width columns at `columns` -> tile. A tile that is wider than n repeats the last
// column.
LUTRA_INLINE void gemm_load(int sb, int width, int64_t s, int64_t n, const struct lutra_column *columns,
                            struct gemm_tile *tile) {
    const int8_t *q[8];
    for (int c = 0; c < width; c++) {
        const struct lutra_column *from = &columns[c < n ? c : n - 1];
        q[c] = from->q + s * sb;
        tile->d[c] = from->d[s];
    }
    gemm_pack(sb, width, q, tile->x);
}

// Super-block s: all panels x the n - column <= width columns from `column` on.
LUTRA_INLINE void gemm_columns(int sb, int width, int64_t s, int64_t n_strips,
                               const struct gemm_panel *panels, int64_t n, const struct lutra_column *columns,
                               gemm_sums *sums, int64_t column) {
    struct gemm_tile tile;
    gemm_load(sb, width, s, n - column, columns + column, &tile);
    for (int64_t i = 0; i < n_strips; i++) {
        gemm_multiply(sb, width, &panels[i], &tile, &sums[i][2 * column]);
    }
}

LUTRA_INLINE void gemm(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                       const struct lutra_column *columns) {
    struct gemm_panel panels[GEMM_STRIPS];
    gemm_sums sums[GEMM_STRIPS];
    int8x16x2_t tables[LUTRA_TABLES];
    w = cb_prepare(cb, w, tables);
    for (; n > 0; n -= GEMM_COLUMNS, columns += GEMM_COLUMNS) {
        const int64_t width = n < GEMM_COLUMNS ? n : GEMM_COLUMNS;
        for (int64_t strip = 0; strip < n_strips; strip += GEMM_STRIPS) {
            const int64_t height = n_strips - strip < GEMM_STRIPS ? n_strips - strip : GEMM_STRIPS;
            memset(sums, 0, (size_t)height * sizeof(sums[0]));
            for (int64_t s = 0; s < k / sb; s++) {
                for (int64_t i = 0; i < height; i++) {
                    gemm_decode(cb, sb, cb_block(cb, sb, w, (strip + i) * (k / sb) + s), &panels[i]);
                }
                int64_t pair = 0; // of columns
                LUTRA_TILES(pair, (width + 1) / 2, 4,
                            gemm_columns(sb, 2 * TILE, s, height, panels, width, columns, sums, 2 * pair))
            }
            for (int64_t i = 0; i < height; i++) {
                gemm_finish(sums[i], width, columns, (strip + i) * LUTRA_ROWS);
            }
        }
    }
}

#endif
