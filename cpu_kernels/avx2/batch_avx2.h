// SPDX-License-Identifier: MIT
// gemv and batch: strips x up to 4 columns, each row's entries looked up once. More columns pay for the
// panel of gemm.
//
// A register tile is a few rows x all columns, with one vector of int32 sums each, over a super-block.
// How entries meet activations is the set's, see product.h.
#ifndef LUTRA_AVX2_BATCH_AVX2_H
#define LUTRA_AVX2_BATCH_AVX2_H

#include "gemm_avx2.h"

enum {
    BATCH_COLUMNS = 4,
    X_VECTORS = 512, // of prepared activations: 16 KiB, beside the library in L1
    PREFETCH = 2048, // bytes ahead, across the page ends where the hardware stops
};
_Static_assert(X_VECTORS * 32 / X_PER_32 <= LUTRA_SPAN, "the tests have wider rows than a span");

// acc[column][row] = rows row .. row + rows - 1 of a strip-super-block x n columns; the activations of a
// column are `stride` vectors apart.
LUTRA_INLINE void batch_tile(int cb, int sb, int rows, int n, struct lutra_weights block, int row,
                             const __m256i *x, int64_t stride, __m256i acc[][LUTRA_ROWS]) {
    __m256i sum[BATCH_COLUMNS][4];
    for (int i = 0; i < n; i++) {
        for (int r = 0; r < rows; r++) {
            sum[i][r] = _mm256_setzero_si256();
        }
    }
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
        __m256i w[4][2];
        for (int r = 0; r < rows; r++) {
            cb_row(cb, chunk, row + r, FLIP, w[r]);
        }
        for (int i = 0; i < n; i++) {
            for (int half = 0; half < 2; half++) {
                const struct x xs = x_vector(sb, x + i * stride, 2 * c + half);
                for (int r = 0; r < rows; r++) {
                    sum[i][r] = dot(sum[i][r], w[r][half], xs);
                }
            }
        }
    }
    for (int i = 0; i < n; i++) {
        for (int r = 0; r < rows; r++) {
            acc[i][row + r] = sum[i][r];
        }
    }
}

// y[column] += a strip-super-block x n columns, super-block s of the columns.
LUTRA_INLINE void batch_block(int cb, int sb, int n, struct lutra_weights block, const __m256i *x,
                              int64_t stride, int64_t s, const struct lutra_column *columns, __m256 *y) {
    const int rows = n == 1 ? 4 : 2;
    __m256i acc[BATCH_COLUMNS][LUTRA_ROWS];
#pragma GCC unroll 4
    for (int row = 0; row < LUTRA_ROWS; row += rows) {
        batch_tile(cb, sb, rows, n, block, row, x, stride, acc);
    }
    for (int i = 0; i < n; i++) {
        const __m256i isum = _mm256_add_epi32(sum_lanes(acc[i]), x[i * stride + x_vectors(sb) - 1]);
        const __m256 scale = _mm256_mul_ps(load_d(block.strips), _mm256_set1_ps(columns[i].d[s]));
        y[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(isum), y[i]);
    }
}

// n is a constant, 1 to BATCH_COLUMNS.
LUTRA_INLINE void batch_columns(int cb, int sb, int n, int64_t k, int64_t n_strips, struct lutra_weights w,
                                const struct lutra_column *columns) {
    __m256i x[X_VECTORS]; // [column][super-block of the run], shared by all strips
    const int64_t blocks = k / sb, block_bytes = cb_block_bytes(cb, sb);
    const int64_t second_bytes = sb / LUTRA_CHUNK * cb_second_bytes(cb);
    const int64_t longest = X_VECTORS / (n * x_vectors(sb));
    for (int i = 0; i < PREFETCH; i += 64) { // arrives while the activations are prepared
        _mm_prefetch((const char *)w.strips + i, _MM_HINT_T0);
    }
    for (int64_t first = 0; first < blocks; first += longest) {
        const int64_t run = blocks - first < longest ? blocks - first : longest;
        const int64_t stride = run * x_vectors(sb);
        for (int i = 0; i < n; i++) {
            for (int64_t s = 0; s < run; s++) {
                load_x(cb, sb, columns[i].q + (first + s) * sb, x + i * stride + s * x_vectors(sb));
            }
        }
        for (int64_t strip = 0; strip < n_strips; strip++) {
            __m256 y[BATCH_COLUMNS];
            for (int i = 0; i < n; i++) {
                y[i] = first == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(columns[i].y + strip * LUTRA_ROWS);
            }
            struct lutra_weights block = cb_block(cb, sb, w, strip * blocks + first);
            for (int64_t s = 0; s < run; s++, block = cb_block(cb, sb, block, 1)) {
                for (int i = 0; i < block_bytes; i += 64) {
                    _mm_prefetch((const char *)block.strips + PREFETCH + i, _MM_HINT_T0);
                }
                for (int i = 0; i < second_bytes; i += 64) {
                    _mm_prefetch((const char *)block.second + PREFETCH + i, _MM_HINT_T0);
                }
                batch_block(cb, sb, n, block, x + s * x_vectors(sb), stride, first + s, columns, y);
            }
            for (int i = 0; i < n; i++) {
                _mm256_storeu_ps(columns[i].y + strip * LUTRA_ROWS, y[i]);
            }
        }
    }
}

LUTRA_INLINE void gemv(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, const int8_t *q,
                       const float *d, float *y) {
    const struct lutra_column column = {q, d, y};
    batch_columns(cb, sb, 1, k, n_strips, w, &column);
}

LUTRA_INLINE void batch(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                        const struct lutra_column *columns) {
    if (n > BATCH_COLUMNS) {
        gemm(cb, sb, k, n_strips, w, n, columns);
        return;
    }
    LUTRA_CONSTANT(n, BATCH_COLUMNS, batch_columns(cb, sb, N, k, n_strips, w, columns))
}

#endif
