// SPDX-License-Identifier: MIT
// gemm: a super-block of some strips is decoded once and meets all columns.
//
// VPDPBUSD multiplies unsigned by signed bytes. The activations become unsigned, q + 128, and the sums
// start at -128 times the sum of the row's entries, which the decoder knows:
//
//     sum of entry * (q + 128) - 128 * sum of entry = sum of entry * q
#ifndef LUTRA_AVX512_GEMM_AVX512_H
#define LUTRA_AVX512_GEMM_AVX512_H

#include "cb_avx512.h"

enum {
    PANEL_ROWS = 2 * LUTRA_ROWS, // one row per 32-bit lane
    PANELS = 4,                  // panels decoded together: they share the unsigned activations
    TILE_PANELS = 2,             // panels per register tile
    TILE_COLUMNS = 8,            // columns per register tile
    BLOCK_COLUMNS = 128,         // columns per decoded super-block: their q stay in L2
};

// A super-block of two strips in steps of 4 weights: w[i] has 16 rows x k = 4 i .. 4 i + 3.
struct panel {
    __m512i w[256 / 4];
    __m512i start; // -128 * sum of entries
    __m512 d;
};

LUTRA_INLINE __m512i load512(const void *p) {
    return _mm512_loadu_si512(p);
}

LUTRA_INLINE __m512i join256(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Eight row pairs, each 2 rows x 8 units of 4 bytes -> 8 vectors of 16 rows x 1 unit.
LUTRA_INLINE void rows_to_lanes(const __m512i pair[8], __m512i out[8]) {
    // Units 0 .. 3 of four pairs are in order in each 128-bit lane after two steps; the last one joins
    // the lanes of a unit (lane 0 or 1 of even rows, 2 or 3 of odd rows) from two vectors.
    const __m512i first = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
    __m512i two[8], four[8];
    for (int i = 0; i < 8; i += 2) {
        two[i] = _mm512_unpacklo_epi32(pair[i], pair[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi32(pair[i], pair[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm512_unpacklo_epi64(two[i], two[i + 2]);
        four[i + 1] = _mm512_unpackhi_epi64(two[i], two[i + 2]);
        four[i + 2] = _mm512_unpacklo_epi64(two[i + 1], two[i + 3]);
        four[i + 3] = _mm512_unpackhi_epi64(two[i + 1], two[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm512_permutex2var_epi32(four[i], first, four[i + 4]);
        out[i + 4] = _mm512_permutex2var_epi32(four[i], second, four[i + 4]);
    }
}

// `strip` are the blocks of the two strips; the same one twice when there is no second.
LUTRA_INLINE void decode(int cb, int sb, const struct lutra_weights strip[2], struct panel *panel) {
    const __m512i bias = _mm512_set1_epi8((char)128);
    __m512i sum = _mm512_setzero_si512();
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        __m512i half[2][8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m256i w[4];
            cb_rows(cb, cb_chunk(cb, strip[i / 4], c), i % 4, w);
            half[0][i] = join256(w[0], w[2]);
            half[1][i] = join256(w[1], w[3]);
        }
        for (int h = 0; h < 2; h++) {
            __m512i units[8];
            rows_to_lanes(half[h], units);
            for (int i = 0; i < 8; i++) {
                panel->w[c * LUTRA_CHUNK / 4 + 8 * h + i] = units[i];
                sum = _mm512_dpbusd_epi32(sum, bias, units[i]);
            }
        }
    }
    panel->start = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
    panel->d = _mm512_cvtph_ps(_mm256_set_m128i(load128(strip[1].strips), load128(strip[0].strips)));
}

LUTRA_INLINE void store(int64_t s, __m512 d, float d_x, __m512i isum, __mmask16 rows, float *y) {
    const __m512 sum = s == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(rows, y);
    const __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(d_x));
    _mm512_mask_storeu_ps(y, rows, _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(isum), sum));
}

// y[row] (+)= one or two panels x n columns for super-block s; `rows` are those of the last panel.
LUTRA_INLINE void tile(int sb, int panels, int n, int64_t s, const struct panel *panel,
                       const int32_t x[][256 / 4], const struct lutra_column *column, int64_t row,
                       __mmask16 rows) {
    __m512i acc0[TILE_COLUMNS], acc1[TILE_COLUMNS]; // of the first and the second panel
    for (int c = 0; c < n; c++) {
        acc0[c] = panel[0].start;
        acc1[c] = panel[panels - 1].start;
    }
    for (int step = 0; step < sb / 4; step++) {
        const __m512i w0 = panel[0].w[step], w1 = panel[panels - 1].w[step];
        for (int c = 0; c < n; c++) {
            const __m512i xs = _mm512_set1_epi32(x[c][step]);
            acc0[c] = _mm512_dpbusd_epi32(acc0[c], xs, w0);
            acc1[c] = _mm512_dpbusd_epi32(acc1[c], xs, w1);
        }
    }
    for (int c = 0; c < n; c++) {
        float *y = column[c].y + row;
        store(s, panel[0].d, column[c].d[s], acc0[c], panels == 1 ? rows : 0xffff, y);
        if (panels == 2) {
            store(s, panel[1].d, column[c].d[s], acc1[c], rows, y + PANEL_ROWS);
        }
    }
}

// Up to TILE_COLUMNS columns against all decoded panels.
LUTRA_INLINE void columns_times_panels(int sb, int n, int panels, int64_t s, const struct panel *panel,
                                       const struct lutra_column *column, int64_t row, __mmask16 rows) {
    int32_t x[TILE_COLUMNS][256 / 4]; // q + 128
    for (int c = 0; c < n; c++) {
        for (int i = 0; i < sb; i += 64) {
            const __m512i q = load512(column[c].q + s * sb + i);
            _mm512_storeu_si512(&x[c][i / 4], _mm512_xor_si512(q, _mm512_set1_epi8((char)0x80)));
        }
    }
    int t = 0;
    for (; t + TILE_PANELS < panels; t += TILE_PANELS) {
        tile(sb, TILE_PANELS, n, s, panel + t, x, column, row + t * PANEL_ROWS, 0xffff);
    }
    if (panels - t == TILE_PANELS) {
        tile(sb, TILE_PANELS, n, s, panel + t, x, column, row + t * PANEL_ROWS, rows);
    } else {
        tile(sb, 1, n, s, panel + t, x, column, row + t * PANEL_ROWS, rows);
    }
}

LUTRA_INLINE void gemm(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                       const struct lutra_column *columns) {
    struct panel panel[PANELS];
    for (int64_t first = 0; first < n; first += BLOCK_COLUMNS) {
        const int64_t end = first + BLOCK_COLUMNS < n ? first + BLOCK_COLUMNS : n;
        for (int64_t strip = 0; strip < n_strips; strip += 2 * PANELS) {
            const int strips = n_strips - strip < 2 * PANELS ? (int)(n_strips - strip) : 2 * PANELS;
            const int panels = (strips + 1) / 2;
            const __mmask16 rows = strips % 2 ? 0x00ff : 0xffff; // of the last panel
            for (int64_t s = 0; s < k / sb; s++) {
                for (int t = 0; t < panels; t++) {
                    const struct lutra_weights block = cb_block(cb, sb, w, (strip + 2 * t) * (k / sb) + s);
                    const struct lutra_weights pair[2] = {
                        block, cb_block(cb, sb, block, 2 * t + 1 < strips ? k / sb : 0)};
                    decode(cb, sb, pair, &panel[t]);
                }
                int64_t c = first;
                LUTRA_TILES(
                    c, end, TILE_COLUMNS,
                    columns_times_panels(sb, TILE, panels, s, panel, columns + c, strip * LUTRA_ROWS, rows))
            }
        }
    }
}

#endif
