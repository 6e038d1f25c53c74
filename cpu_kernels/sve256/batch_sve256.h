// SPDX-License-Identifier: MIT
// The batch body of the SVE-256 kernels, up to 8 columns.
#ifndef LUTRA_SVE256_BATCH_SVE256_H
#define LUTRA_SVE256_BATCH_SVE256_H

#include "cb_sve256.h"

// One SMMLA multiplies, in each half of the registers, 2 columns x 8 weights with 2 rows x 8 weights.
// The halves hold consecutive weights; their sums are added at the end of the super-block.
//
//     x    c0 k0..7 | c1 k0..7 || c0 k8..15 | c1 k8..15
//     w    r0 k0..7 | r1 k0..7 || r0 k8..15 | r1 k8..15
//     acc  c0r0 c0r1 c1r0 c1r1 || c0r0 c0r1 c1r0 c1r1

enum {
    BATCH_STRIPS = 16, // that reuse the interleaved activations
    BATCH_PAIRS = LUTRA_BATCH / 2
};

// Both operands and the float sums.
struct batch_block {
    struct panel w;
    int8_t x[256 / LUTRA_GROUP][BATCH_PAIRS][2][32]; // [group][pair of columns][16 weights][column, k]
    float d_x[BATCH_PAIRS][4];                       // [pair of columns]: d0 d0 d1 d1
    float sums[BATCH_STRIPS][BATCH_PAIRS][2][8];     // [strip][pair of columns][4 rows]
};

// Activations of super-block s; an odd last column counts twice.
LUTRA_INLINE void batch_pack(int sb, int64_t s, int n, const struct lutra_column *columns,
                             struct batch_block *b) {
    for (int pair = 0; 2 * pair < n; pair++) {
        const struct lutra_column *c0 = &columns[2 * pair],
                                  *c1 = &columns[2 * pair + 1 < n ? 2 * pair + 1 : n - 1];
        b->d_x[pair][0] = b->d_x[pair][1] = c0->d[s];
        b->d_x[pair][2] = b->d_x[pair][3] = c1->d[s];
        for (int g = 0; g < sb / LUTRA_GROUP; g++) {
            const svint64_t x0 = svreinterpret_s64_s8(svld1(ALL, c0->q + s * sb + LUTRA_GROUP * g));
            const svint64_t x1 = svreinterpret_s64_s8(svld1(ALL, c1->q + s * sb + LUTRA_GROUP * g));
            svst2(ALL, (int64_t *)b->x[g][pair], svcreate2(x0, x1));
        }
    }
}

// sums += panel x columns.
LUTRA_INLINE void batch_tile(int sb, int pairs, const struct batch_block *b, float (*sums)[2][8]) {
    int32x8 acc[LUTRA_ROWS / 2][BATCH_PAIRS];
    for (int i = 0; i < LUTRA_ROWS / 2; i++) {
        for (int pair = 0; pair < pairs; pair++) {
            acc[i][pair] = svdup_s32_z(LOWER_HALF, START_BITS);
        }
    }
#pragma GCC unroll 1
    for (int g = 0; g < sb / LUTRA_GROUP; g++) {
        for (int half = 0; half < 2; half++) { // of a group: 16 weights
            int8x32 x[BATCH_PAIRS];
            for (int pair = 0; pair < pairs; pair++) {
                x[pair] = svld1(ALL, b->x[g][pair][half]);
            }
            for (int i = 0; i < LUTRA_ROWS / 2; i++) {
                const svint8_t w = svld1(ALL, b->w.entry[g][i][2 * half]);
                for (int pair = 0; pair < pairs; pair++) {
                    acc[i][pair] = svmmla(acc[i][pair], x[pair], w);
                }
            }
        }
    }
    for (int half = 0; half < 2; half++) { // rows 0..3, rows 4..7
        const svfloat32_t d_w = svld1(ALL, b->w.d[2 * half]);
        for (int pair = 0; pair < pairs; pair++) {
            const svint32_t a0 = acc[2 * half][pair], a1 = acc[2 * half + 1][pair];
            const svint32_t both = svadd_x(ALL, svext(a0, a1, 4), svsel(LOWER_HALF, a0, a1));
            const svfloat32_t isum = svsub_x(ALL, svreinterpret_f32_s32(both), START);
            const svfloat32_t d = svmul_x(ALL, d_w, svld1rq(ALL, b->d_x[pair]));
            float *sum = sums[pair][half];
            svst1(ALL, sum, svmla_x(ALL, svld1(ALL, sum), d, isum));
        }
    }
}

// y[row .. row + 7] of the n columns.
LUTRA_INLINE void batch_store(int n, float (*const sums)[2][8], const struct lutra_column *columns,
                              int64_t row) {
    for (int c = 0; c < n; c++) {
        for (int i = 0; i < LUTRA_ROWS / 2; i++) {
            memcpy(columns[c].y + row + 2 * i, &sums[c / 2][i / 2][4 * (i % 2) + 2 * (c % 2)],
                   2 * sizeof(float));
        }
    }
}

LUTRA_INLINE void batch(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w,
                        int64_t n_columns, const struct lutra_column *columns) {
    struct batch_block b;
    int8x16x2_t tables[LUTRA_TABLES];
    w = cb_prepare(cb, w, tables);
    const int n = (int)n_columns;
    for (int64_t first = 0; first < n_strips; first += BATCH_STRIPS) {
        const int count = n_strips - first < BATCH_STRIPS ? (int)(n_strips - first) : BATCH_STRIPS;
        memset(b.sums, 0, (size_t)count * sizeof(b.sums[0]));
        for (int64_t s = 0; s < k / sb; s++) {
            batch_pack(sb, s, n, columns, &b);
            for (int i = 0; i < count; i++) {
                decode(cb, sb, cb_block(cb, sb, w, (first + i) * (k / sb) + s), &b.w);
                LUTRA_CONSTANT((n + 1) / 2, BATCH_PAIRS, batch_tile(sb, N, &b, b.sums[i]))
            }
        }
        for (int i = 0; i < count; i++) {
            batch_store(n, b.sums[i], columns, (first + i) * LUTRA_ROWS);
        }
    }
}

#endif
