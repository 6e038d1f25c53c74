// SPDX-License-Identifier: MIT
// The batch body of the NEON i8mm kernels: 4 rows x up to 8 columns meet in registers. The rows of a chunk
// are decoded straight into operands of SMMLA; the activations of a super-block are packed once for a group
// of strips, as in gemm. `width`, the number of columns made even, is a constant of the inner functions.
#ifndef LUTRA_NEON_I8MM_BATCH_NEON_I8MM_H
#define LUTRA_NEON_I8MM_BATCH_NEON_I8MM_H

#include "../neon/gemm_panels.h"
#include "../neon/two_columns_neon.h"

// Rows `row` and `row` + 1 of a chunk -> w[k / 8]: 8 bytes of one row, 8 of the next.
LUTRA_INLINE void batch_decode(int cb, struct lutra_weights chunk, int row, int8x16_t w[8]) {
    int8x16_t row0[4], row1[4];
    cb_row(cb, chunk, row, row0);
    cb_row(cb, chunk, row + 1, row1);
    for (int i = 0; i < 4; i++) {
        const int64x2_t a = vreinterpretq_s64_s8(row0[i]), b = vreinterpretq_s64_s8(row1[i]);
        w[2 * i] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
        w[2 * i + 1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
    }
    if (cb > 4) { // complete before the tables of the next two rows, which would not fit beside these
        __asm__ volatile(""
                         :
                         : "w"(w[0]), "w"(w[1]), "w"(w[2]), "w"(w[3]), "w"(w[4]), "w"(w[5]), "w"(w[6]),
                           "w"(w[7])
                         : "memory");
    }
}

// sums[column pair][row pair] += rows `row` to `row` + 3 of a block x tile. Of the 32 registers w takes 16
// and acc 8.
LUTRA_INLINE void batch_rows(int cb, int sb, int width, struct lutra_weights block, int row,
                             const struct gemm_tile *tile, float32x4_t *restrict sums) {
    int32x4_t acc[4][2];
    for (int p = 0; p < width / 2; p++) {
        acc[p][0] = acc[p][1] = sum_start();
    }
    const int8x16_t *x = tile->x;
#pragma GCC unroll 1
    for (int c = 0; c < sb / LUTRA_CHUNK; c++, x += 4 * width) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
        int8x16_t w[2][8];
        batch_decode(cb, chunk, row, w[0]);
        batch_decode(cb, chunk, row + 2, w[1]);
        __asm__ volatile("" : : : "memory"); // x is loaded after w is complete: no spills
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) { // 16 weights
#pragma GCC unroll 4
            for (int p = 0; p < width / 2; p++) {
                const int8x16_t x0 = x[i * width + 2 * p], x1 = x[i * width + 2 * p + 1];
                acc[p][0] = vmmlaq_s32(acc[p][0], w[0][2 * i], x0);
                acc[p][1] = vmmlaq_s32(acc[p][1], w[1][2 * i], x0);
                acc[p][0] = vmmlaq_s32(acc[p][0], w[0][2 * i + 1], x1);
                acc[p][1] = vmmlaq_s32(acc[p][1], w[1][2 * i + 1], x1);
            }
        }
    }
    const float32x4_t d = load_d(block.strips + 2 * row);
    for (int p = 0; p < width / 2; p++) {
        float32x4_t *sum = &sums[4 * p + row / 2];
        sum[0] = add_products(sum[0], vzip1q_f32(d, d), tile->d + 2 * p, acc[p][0]);
        sum[1] = add_products(sum[1], vzip2q_f32(d, d), tile->d + 2 * p, acc[p][1]);
    }
}

LUTRA_INLINE void batch_4xn(int cb, int sb, int width, int64_t k, int64_t n_strips, struct lutra_weights w,
                            int64_t n, const struct lutra_column *columns) {
    struct gemm_tile tile;
    float32x4_t sums[GEMM_STRIPS][2 * LUTRA_BATCH];
    for (int64_t strip = 0; strip < n_strips; strip += GEMM_STRIPS) {
        const int64_t height = n_strips - strip < GEMM_STRIPS ? n_strips - strip : GEMM_STRIPS;
        memset(sums, 0, (size_t)height * sizeof(sums[0]));
        for (int64_t s = 0; s < k / sb; s++) {
            gemm_load(sb, width, s, n, columns, &tile);
            struct lutra_weights block = cb_block(cb, sb, w, strip * (k / sb) + s);
            for (int64_t i = 0; i < height; i++, block = cb_block(cb, sb, block, k / sb)) {
                batch_rows(cb, sb, width, block, 0, &tile, sums[i]);
                batch_rows(cb, sb, width, block, 4, &tile, sums[i]);
            }
        }
        for (int64_t i = 0; i < height; i++) {
            gemm_finish(sums[i], n, columns, (strip + i) * LUTRA_ROWS);
        }
    }
}

LUTRA_INLINE void batch(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                        const struct lutra_column *columns) {
    int8x16x2_t tables[LUTRA_TABLES];
    w = cb_prepare(cb, w, tables);
    if (n == 2) { // SMMLA saves as many SDOT as it takes ZIP
        two_columns(cb, sb, k, n_strips, w, columns);
        return;
    }
    LUTRA_CONSTANT((n + 1) / 2, LUTRA_BATCH / 2, batch_4xn(cb, sb, 2 * N, k, n_strips, w, n, columns))
}

#endif
