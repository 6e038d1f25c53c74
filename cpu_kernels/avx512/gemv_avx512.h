// SPDX-License-Identifier: MIT
// gemv and batch: strips times 1 to 8 columns. The entries of a few rows meet the columns while they are in
// registers: 8 rows x 1 or 2 columns or 4 rows x up to 6, with one vector of int32 sums each. 7 and 8 columns
// take two tiles.
//
// VPDPBUSD multiplies unsigned by signed bytes. The entries become unsigned, entry + 128, in a copy of
// the library; 128 times the sum of a super-block's q, the same for every row, is taken off at the end.
#ifndef LUTRA_AVX512_GEMV_AVX512_H
#define LUTRA_AVX512_GEMV_AVX512_H

#include "cb_avx512.h"

enum {
    PREFETCH = 4096,  // bytes ahead, across the page ends where the hardware stops
    TILE_ROWS = 4,    // rows per register tile; twice as many for 1 or 2 columns
    TILE_COLUMNS = 6, // columns per register tile
    SPAN_BLOCKS = 64, // super-blocks whose excess is known at a time
};
_Static_assert(SPAN_BLOCKS * 256 <= LUTRA_SPAN, "the tests have wider rows than a span");

// What is the same for all strips.
struct span {
    _Alignas(64) uint8_t entries[LUTRA_TABLES * 64]; // the library, with the first layer's entries + 128
    int32_t excess[LUTRA_BATCH][SPAN_BLOCKS];        // 128 * sum of q
};

LUTRA_INLINE void make_entries(int cb, const int8_t *library, uint8_t *entries) {
    const int first = LUTRA_TABLES * (int)cb_table_bytes(cb),
              second = LUTRA_TABLES * (int)cb_second_table(cb);
    for (int i = 0; i < first; i += 64) {
        const __m512i v = _mm512_loadu_si512(library + i);
        _mm512_store_si512(entries + i, _mm512_xor_si512(v, _mm512_set1_epi8((char)128)));
    }
    memcpy(entries + first, library + first, (size_t)second);
}

LUTRA_INLINE int32_t excess_of(int sb, const int8_t *q) {
    __m512i sums = _mm512_setzero_si512();
    for (int i = 0; i < sb; i += 64) {
        sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8((char)128), _mm512_loadu_si512(q + i));
    }
    return _mm512_reduce_add_epi32(sums);
}

// acc[column][row] = sums over super-block s, in lanes; at most TILE_COLUMNS columns.
LUTRA_INLINE void multiply_block(int cb, int sb, int n, bool hints, int64_t s, struct lutra_weights block,
                                 const struct lutra_column *column, __m256i acc[][LUTRA_ROWS]) {
    const int rows = n <= 2 ? 2 * TILE_ROWS : TILE_ROWS;
#pragma GCC unroll 4
    for (int first = 0; first < LUTRA_ROWS; first += rows) {
        __m256i sum[TILE_ROWS * TILE_COLUMNS]; // [row][column]
#pragma GCC unroll 24
        for (int i = 0; i < rows * n; i++) {
            sum[i] = _mm256_setzero_si256();
        }
#pragma GCC unroll 1
        for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
            const struct lutra_weights chunk = cb_chunk(cb, block, c);
            for (int i = 0; hints && first == 0 && i < cb_chunk_bytes(cb); i += 64) {
                _mm_prefetch((const char *)chunk.strips + PREFETCH + i, _MM_HINT_T1);
            }
            for (int i = 0; hints && first == 0 && i < cb_second_bytes(cb); i += 64) {
                _mm_prefetch((const char *)chunk.second + PREFETCH + i, _MM_HINT_T1);
            }
            const int64_t k = s * sb + c * LUTRA_CHUNK;
#pragma GCC unroll 4
            for (int row = 0; row < rows; row += 2) {
                __m256i w[4];
                cb_rows(cb, chunk, (first + row) / 2, w);
#pragma GCC unroll 8
                for (int i = 0; i < n; i++) {
                    const __m256i x0 = load256(column[i].q + k), x1 = load256(column[i].q + k + 32);
                    __m256i *a = &sum[row * n + i], *b = &sum[row * n + n + i];
                    *a = _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(*a, w[0], x0), w[1], x1);
                    *b = _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(*b, w[2], x0), w[3], x1);
                }
            }
        }
#pragma GCC unroll 24
        for (int i = 0; i < rows * n; i++) {
            acc[i % n][first + i / n] = sum[i];
        }
    }
}

LUTRA_INLINE void strips_times_columns(int cb, int sb, int n, int64_t k, int64_t n_strips,
                                       struct lutra_weights w, const struct lutra_column *column) {
    const int64_t n_blocks = k / sb;
    // AMD's prefetcher keeps up with CB4's bytes per chunk, and hints hinder it. Intel's needs them.
    const bool hints = cb_chunk_bytes(cb) < cb_chunk_bytes(4) || !__builtin_cpu_is("amd");
    for (int i = 0; i < PREFETCH; i += 64) { // arrives while the entries are made
        _mm_prefetch((const char *)w.strips + i, _MM_HINT_T1);
    }
    struct span span;
    make_entries(cb, w.library, span.entries);
    w.library = (const int8_t *)span.entries;
    for (int64_t first = 0; first < n_blocks; first += SPAN_BLOCKS) {
        const int64_t end = n_blocks - first < SPAN_BLOCKS ? n_blocks : first + SPAN_BLOCKS;
        for (int i = 0; i < n; i++) {
            for (int64_t s = first; s < end; s++) {
                span.excess[i][s - first] = excess_of(sb, column[i].q + s * sb);
            }
        }
        for (int64_t strip = 0; strip < n_strips; strip++) {
            struct lutra_weights block = cb_block(cb, sb, w, strip * n_blocks + first);
            __m256 y[LUTRA_BATCH];
            for (int i = 0; i < n; i++) {
                y[i] = first == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(column[i].y + strip * LUTRA_ROWS);
            }
            for (int64_t s = first; s < end; s++) {
                __m256i acc[LUTRA_BATCH][LUTRA_ROWS];
                const int part = n <= TILE_COLUMNS ? n : (n + 1) / 2;
                multiply_block(cb, sb, part, hints, s, block, column, acc);
                if (part < n) {
                    multiply_block(cb, sb, n - part, false, s, block, column + part, acc + part);
                }
                const __m256 d = load_d(block.strips);
                for (int i = 0; i < n; i++) {
                    const __m256i excess = _mm256_set1_epi32(span.excess[i][s - first]);
                    const __m256 isum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum_lanes(acc[i]), excess));
                    y[i] = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(column[i].d[s])), isum, y[i]);
                }
                block = cb_block(cb, sb, block, 1);
            }
            for (int i = 0; i < n; i++) {
                _mm256_storeu_ps(column[i].y + strip * LUTRA_ROWS, y[i]);
            }
        }
    }
}

LUTRA_INLINE void gemv(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, const int8_t *q,
                       const float *d, float *y) {
    const struct lutra_column column = {q, d, y};
    strips_times_columns(cb, sb, 1, k, n_strips, w, &column);
}

LUTRA_INLINE void batch(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                        const struct lutra_column *columns) {
    LUTRA_CONSTANT(n, LUTRA_BATCH, strips_times_columns(cb, sb, N, k, n_strips, w, columns))
}

#endif
