// SPDX-License-Identifier: MIT
// The gemm body of the SVE-256 kernels.
#ifndef LUTRA_SVE256_GEMM_SVE256_H
#define LUTRA_SVE256_GEMM_SVE256_H

#include "cb_sve256.h"

// One SMMLA multiplies, in each half of the registers, 2 columns x 8 weights with 2 rows x 8 weights:
// the halves of x hold two pairs of columns (a quad), w is a pair of rows in both halves.
//
//     x    c0 k0..7 | c1 k0..7 || c2 k0..7 | c3 k0..7
//     w    r0 k0..7 | r1 k0..7 || r0 k0..7 | r1 k0..7
//     acc  c0r0 c0r1 c1r0 c1r1 || c2r0 c2r1 c3r0 c3r1
//
// Activations are brought to this order once per super-block and reused by GEMM_STRIPS strips; a
// super-block of a strip is decoded once and meets all columns of a block.

enum {
    GEMM_STRIPS = 16,
    GEMM_QUADS = 24, // 96 columns
    TILE_QUADS = 6   // 24 accumulators
};

// Both operands, in steps of 8 weights, 4 steps a group, and the float sums: all in L1.
struct gemm_block {
    struct panel w;
    int8_t x[GEMM_QUADS * 256 / LUTRA_GROUP][4][32]; // per tile [group][quad][step][column, k]
    float d_x[GEMM_QUADS][8];                        // [quad]: d0 d0 d1 d1 d2 d2 d3 d3
    float sums[GEMM_STRIPS][GEMM_QUADS][LUTRA_ROWS / 2][8];
};

// Activations of super-block s, the quads of one tile; columns from n on repeat the last one.
LUTRA_INLINE void gemm_pack_tile(int sb, int quads, int first, int64_t s, int n,
                                 const struct lutra_column *columns, struct gemm_block *b) {
    for (int quad = first; quad < first + quads; quad++) {
        const int8_t *q[4];
        for (int i = 0; i < 4; i++) {
            const struct lutra_column *column = &columns[4 * quad + i < n ? 4 * quad + i : n - 1];
            q[i] = column->q + s * sb;
            b->d_x[quad][2 * i] = b->d_x[quad][2 * i + 1] = column->d[s];
        }
        int8_t *x = b->x[first * sb / LUTRA_GROUP + quad - first][0];
        for (int k = 0; k < sb; k += LUTRA_GROUP, x += quads * sizeof(b->x[0])) {
            const svint64_t x0 = svreinterpret_s64_s8(svld1(ALL, q[0] + k));
            const svint64_t x1 = svreinterpret_s64_s8(svld1(ALL, q[1] + k));
            const svint64_t x2 = svreinterpret_s64_s8(svld1(ALL, q[2] + k));
            const svint64_t x3 = svreinterpret_s64_s8(svld1(ALL, q[3] + k));
            svst4(ALL, (int64_t *)x, svcreate4(x0, x1, x2, x3));
        }
    }
}

LUTRA_INLINE void gemm_pack(int sb, int64_t s, int n, const struct lutra_column *columns,
                            struct gemm_block *b) {
    int quad = 0;
    LUTRA_TILES(quad, (n + 3) / 4, TILE_QUADS, gemm_pack_tile(sb, TILE, quad, s, n, columns, b))
}

// No load moves above and no SMMLA of these sums below: with 24 sums there is no register to spare.
LUTRA_INLINE void finish(int32x8 acc[4]) {
    svint32_t a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
    __asm__ volatile("" : "+w"(a0), "+w"(a1), "+w"(a2), "+w"(a3) : : "memory");
    acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}

// sums += panel x columns, `quads` quads of them from `first` on.
LUTRA_INLINE void gemm_tile(int sb, int quads, int first, const struct gemm_block *b,
                            float (*sums)[LUTRA_ROWS / 2][8]) {
    int32x8 acc[TILE_QUADS][LUTRA_ROWS / 2];
    for (int i = 0; i < quads; i++) {
        for (int pair = 0; pair < LUTRA_ROWS / 2; pair++) {
            acc[i][pair] = svdup_s32(START_BITS);
        }
    }
    const int8_t (*x)[4][32] = b->x + first * sb / LUTRA_GROUP;
    const int8_t *w =
        b->w.entry[0][0][0] + 128; // the middle of a group: LD1RQB reaches 128 bytes either side
#pragma GCC unroll 1
    for (int g = 0; g < sb / LUTRA_GROUP; g++, x += quads, w += sizeof(b->w.entry[0])) {
        __asm__("" : "+r"(w)); // a pointer of its own, not an offset from x
#pragma GCC unroll 4
        for (int step = 0; step < 4; step++) {
            int8x32 rows[LUTRA_ROWS / 2];
            for (int pair = 0; pair < LUTRA_ROWS / 2; pair++) {
                rows[pair] = svld1rq(ALL, w + 64 * pair + 16 * step - 128);
            }
            for (int i = 0; i < quads; i++) {
                const svint8_t xi = svld1(ALL, x[i][step]);
                for (int pair = 0; pair < LUTRA_ROWS / 2; pair++) {
                    acc[i][pair] = svmmla(acc[i][pair], xi, rows[pair]);
                }
                if (quads == TILE_QUADS) {
                    finish(acc[i]);
                }
            }
        }
    }
    float32x8 d_w[LUTRA_ROWS / 2];
    for (int pair = 0; pair < LUTRA_ROWS / 2; pair++) {
        d_w[pair] = svld1rq(ALL, b->w.d[pair]);
    }
    for (int i = 0; i < quads; i++) {
        const svfloat32_t d_x = svld1(ALL, b->d_x[first + i]);
        for (int pair = 0; pair < LUTRA_ROWS / 2; pair++) {
            const svfloat32_t isum = svsub_x(ALL, svreinterpret_f32_s32(acc[i][pair]), START);
            const svfloat32_t sum = svld1(ALL, sums[i][pair]);
            svst1(ALL, sums[i][pair], svmla_x(ALL, sum, svmul_x(ALL, d_x, d_w[pair]), isum));
        }
        __asm__ volatile("" ::: "memory");
    }
}

LUTRA_INLINE svfloat64_t load_pairs(const float *sums) {
    return svreinterpret_f64_f32(svld1(ALL, sums));
}

// y[row .. row + 7] of the n columns: a 4 x 4 transposition of row pairs and columns.
LUTRA_INLINE void store_columns(int n, float (*sums)[LUTRA_ROWS / 2][8], const struct lutra_column *columns,
                                int64_t row) {
    for (int c = 0; c < n; c += 4, sums++) {
        double y[4][4];
        svst4(ALL, y[0],
              svcreate4(load_pairs(sums[0][0]), load_pairs(sums[0][1]), load_pairs(sums[0][2]),
                        load_pairs(sums[0][3])));
        for (int i = 0; i < 4 && c + i < n; i++) {
            memcpy(columns[c + i].y + row, y[i], sizeof(y[i]));
        }
    }
}

LUTRA_INLINE void gemm(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n_columns,
                       const struct lutra_column *columns) {
    struct gemm_block b;
    int8x16x2_t tables[LUTRA_TABLES];
    w = cb_prepare(cb, w, tables);
    for (int64_t column = 0; column < n_columns; column += 4 * GEMM_QUADS) {
        const int n = n_columns - column < 4 * GEMM_QUADS ? (int)(n_columns - column) : 4 * GEMM_QUADS;
        const int all = (n + 3) / 4;
        for (int64_t strip = 0; strip < n_strips; strip += GEMM_STRIPS) {
            const int strips = n_strips - strip < GEMM_STRIPS ? (int)(n_strips - strip) : GEMM_STRIPS;
            for (int i = 0; i < strips; i++) {
                memset(b.sums[i], 0, (size_t)all * sizeof(b.sums[i][0]));
            }
            for (int64_t s = 0; s < k / sb; s++) {
                gemm_pack(sb, s, n, columns + column, &b);
                for (int i = 0; i < strips; i++) {
                    decode(cb, sb, cb_block(cb, sb, w, (strip + i) * (k / sb) + s), &b.w);
                    int quad = 0;
                    LUTRA_TILES(quad, all, TILE_QUADS, gemm_tile(sb, TILE, quad, &b, b.sums[i] + quad))
                }
            }
            for (int i = 0; i < strips; i++) {
                store_columns(n, b.sums[i], columns + column, (strip + i) * LUTRA_ROWS);
            }
        }
    }
}

#endif
