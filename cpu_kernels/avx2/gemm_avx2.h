// SPDX-License-Identifier: MIT
// gemm: a super-block of some strips is decoded once into a panel in L1 and meets all columns.
//
// How entries meet activations is the set's, see product.h.
#ifndef LUTRA_AVX2_GEMM_AVX2_H
#define LUTRA_AVX2_GEMM_AVX2_H

#include "product.h"

enum {
    GEMM_COLUMNS = 4, // columns per register tile
    GEMM_STRIPS = 2,  // strips per register tile
    GEMM_PANELS = 8,  // strips decoded together: they share the prepared activations
    GEMM_BLOCK = 128, // columns per decoded super-block: their q stay in L2
};

// A super-block of a strip in steps of 4 weights: w[step] has 8 rows x 4 entries.
struct panel {
    __m256i w[256 / 4];
    __m256 d;
};

// Rows of 8 x 4 bytes -> vectors of 8 rows x 4 bytes (an 8 x 8 transposition of 4-byte units).
LUTRA_INLINE void transpose(const __m256i row[8], __m256i out[8]) {
    __m256i pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quad[i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
        quad[i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
        quad[i + 2] = _mm256_unpacklo_epi64(pair[i + 1], pair[i + 3]);
        quad[i + 3] = _mm256_unpackhi_epi64(pair[i + 1], pair[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x20);
        out[i + 4] = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x31);
    }
}

LUTRA_INLINE void gemm_decode(int cb, int sb, struct lutra_weights block, struct panel *panel) {
    panel->d = load_d(block.strips);
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
        __m256i half[2][LUTRA_ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < LUTRA_ROWS; row++) {
            __m256i w[2];
            cb_row(cb, chunk, row, FLIP, w);
            half[0][row] = w[0];
            half[1][row] = w[1];
        }
        transpose(half[0], panel->w + c * LUTRA_CHUNK / 4);
        transpose(half[1], panel->w + c * LUTRA_CHUNK / 4 + 8);
    }
}

LUTRA_INLINE void gemm_store(int64_t s, __m256 d, float d_x, __m256i isum, float *y) {
    const __m256 sum = s == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(y);
    const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(d_x));
    _mm256_storeu_ps(y, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(isum), sum));
}

// y[row] (+)= some panels x n columns for super-block s; y of the strips are 8 floats apart.
LUTRA_INLINE void gemm_tile(int sb, int strips, int n, int64_t s, const struct panel *panel, const __m256i *x,
                            const struct lutra_column *column, int64_t row) {
    __m256i acc[GEMM_STRIPS][GEMM_COLUMNS];
    for (int c = 0; c < n; c++) {
        for (int t = 0; t < strips; t++) {
            acc[t][c] = x[(c + 1) * x_vectors(sb) - 1];
        }
    }
#pragma GCC unroll 4
    for (int step = 0; step < sb / 4; step++) {
        for (int c = 0; c < n; c++) {
            const struct x xs = x_step(sb, x + c * x_vectors(sb), step);
            for (int t = 0; t < strips; t++) {
                acc[t][c] = dot(acc[t][c], panel[t].w[step], xs);
            }
        }
    }
    for (int c = 0; c < n; c++) {
        for (int t = 0; t < strips; t++) {
            gemm_store(s, panel[t].d, column[c].d[s], acc[t][c], column[c].y + row + t * LUTRA_ROWS);
        }
    }
}

// Up to GEMM_COLUMNS columns against all decoded panels.
LUTRA_INLINE void gemm_columns(int cb, int sb, int n, int panels, int64_t s, const struct panel *panel,
                               const struct lutra_column *column, int64_t row) {
    __m256i x[GEMM_COLUMNS * (X_PER_32 * 256 / 32 + 1)];
    for (int c = 0; c < n; c++) {
        load_x(cb, sb, column[c].q + s * sb, x + c * x_vectors(sb));
    }
    int t = 0;
    LUTRA_TILES(t, panels, GEMM_STRIPS, gemm_tile(sb, TILE, n, s, panel + t, x, column, row + t * LUTRA_ROWS))
}

LUTRA_INLINE void gemm(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                       const struct lutra_column *columns) {
    struct panel panel[GEMM_PANELS];
    for (int64_t first = 0; first < n; first += GEMM_BLOCK) {
        const int64_t end = first + GEMM_BLOCK < n ? first + GEMM_BLOCK : n;
        for (int64_t strip = 0; strip < n_strips; strip += GEMM_PANELS) {
            const int panels = n_strips - strip < GEMM_PANELS ? (int)(n_strips - strip) : GEMM_PANELS;
            for (int64_t s = 0; s < k / sb; s++) {
                for (int t = 0; t < panels; t++) {
                    gemm_decode(cb, sb, cb_block(cb, sb, w, (strip + t) * (k / sb) + s), &panel[t]);
                }
                int64_t c = first;
                LUTRA_TILES(c, end, GEMM_COLUMNS,
                            gemm_columns(cb, sb, TILE, panels, s, panel, columns + c, strip * LUTRA_ROWS))
            }
        }
    }
}

#endif
