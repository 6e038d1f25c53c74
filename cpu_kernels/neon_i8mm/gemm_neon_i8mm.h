// The gemm body of the NEON i8mm kernels; `cb`, `sb` and `pairs` are constants at every call.
//
// SMMLA multiplies 2 rows x 8 weights by 8 weights x 2 columns: each operand holds 8 bytes of one row or
// column, then 8 of the other, and the four lanes of a sum are
//
//     row 0 x column 0, row 0 x column 1, row 1 x column 0, row 1 x column 1
//
// A super-block of several strips is decoded into panels of such operands, and packed activations of 8
// columns at a time meet all of them. The float sums keep the order of the lanes to the end of the rows.
#ifndef LUTRA_NEON_I8MM_GEMM_NEON_I8MM_H
#define LUTRA_NEON_I8MM_GEMM_NEON_I8MM_H

#include "../neon/cb_neon.h"

#include <string.h>

enum {
    GEMM_STRIPS = 16, // strips that a packed tile meets: their panels take 32 KiB
    GEMM_TILE = 4,    // column pairs per register tile: 4 x 4 sums
    GEMM_PAIRS = 32   // column pairs per decoded super-block
};

// Entries of 8 rows x sb weights, [k / 16][row pair][k % 16 / 8]; d: row 0, row 0, row 1, row 1.
struct gemm_panel {
    int8x16_t w[256 / 16][LUTRA_ROWS / 2][2];
    float32x4_t d[LUTRA_ROWS / 2];
};

// Activations of 8 columns x sb weights, [k / 16][column pair][k % 16 / 8]; d: column 0, 1, 0, 1.
struct gemm_tile {
    int8x16_t x[256 / 16][GEMM_TILE][2];
    float32x4_t d[GEMM_TILE];
};

// Float sums of a strip, [column pair][row pair].
typedef float32x4_t gemm_sums[GEMM_PAIRS][LUTRA_ROWS / 2];

// 16 bytes of two rows or columns -> two operands.
LUTRA_INLINE void store_pair(int8x16_t to[2], int8x16_t a, int8x16_t b) {
    const int64x2x2_t pair = {{vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)}};
    vst2q_s64((int64_t *)to, pair);
}

LUTRA_INLINE void gemm_decode(int cb, int sb, const uint8_t *block, const int8_t *library,
                              struct gemm_panel *panel) {
    for (int i = 0; i < 2; i++) {
        const float32x4_t d = load_d(block + 8 * i);
        panel->d[2 * i] = vzip1q_f32(d, d);
        panel->d[2 * i + 1] = vzip2q_f32(d, d);
    }
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const uint8_t *chunk = block + 2 * LUTRA_ROWS + c * cb_chunk_bytes(cb);
#pragma GCC unroll 4
        for (int r = 0; r < LUTRA_ROWS / 2; r++) {
            int8x16_t row0[4], row1[4];
            cb_row(cb, chunk, library, 2 * r, row0);
            cb_row(cb, chunk, library, 2 * r + 1, row1);
            for (int i = 0; i < 4; i++) {
                store_pair(panel->w[c * LUTRA_CHUNK / 16 + i][r], row0[i], row1[i]);
            }
        }
    }
}

// Super-block s of n columns; what a tile of `pairs` has more repeats the last one.
LUTRA_INLINE void gemm_pack(int sb, int pairs, int64_t s, int64_t n, const struct lutra_column *columns,
                            struct gemm_tile *tile) {
    const int8_t *q[2 * GEMM_TILE];
    float d[2 * GEMM_TILE];
    for (int c = 0; c < 2 * pairs; c++) {
        const struct lutra_column *column = &columns[c < n ? c : n - 1];
        q[c] = column->q + s * sb;
        d[c] = column->d[s];
    }
    for (int p = 0; p < pairs; p++) {
        const float32x2_t d01 = vld1_f32(d + 2 * p);
        tile->d[p] = vcombine_f32(d01, d01);
    }
    for (int i = 0; i < sb / 16; i++) {
        for (int p = 0; p < pairs; p++) {
            store_pair(tile->x[i][p], vld1q_s8(q[2 * p] + 16 * i), vld1q_s8(q[2 * p + 1] + 16 * i));
        }
    }
}

// The float of an integer sum i, |i| <= 2^22, without a conversion: the accumulator starts at the bits
// of 1.5 * 2^23, a float whose last place is 1, so that it holds the float 1.5 * 2^23 + i.
LUTRA_INLINE int32x4_t sum_start(void) {
    return vreinterpretq_s32_f32(vdupq_n_f32(0x1.8p23f));
}

LUTRA_INLINE float32x4_t sum_float(int32x4_t acc) {
    return vsubq_f32(vreinterpretq_f32_s32(acc), vdupq_n_f32(0x1.8p23f));
}

// acc[column pair][row pair] = panel x tile for 8 rows x 8 columns. In assembly, because compilers spend up
// to twice as many instructions on loads and copies: here 16 weights take 4 loads and 32 SMMLA.
LUTRA_INLINE void sums_8x8(int sb, const struct gemm_panel *panel, const struct gemm_tile *tile,
                           int32x4_t acc[4][4]) {
    const int8x16_t *w = panel->w[0][0], *x = tile->x[0][0];
    int64_t steps = sb / 16;
    // clang-format off
#define START(i, j, k, l) \
    "mov %" #i ".16b, %[start].16b\n mov %" #j ".16b, %[start].16b\n" \
    "mov %" #k ".16b, %[start].16b\n mov %" #l ".16b, %[start].16b\n"
#define COLUMN_PAIR(i, j, k, l, x0, x1) /* 4 row pairs in v16 to v23 */ \
    "smmla %" #i ".4s, v16.16b, " x0 ".16b\n smmla %" #j ".4s, v18.16b, " x0 ".16b\n" \
    "smmla %" #k ".4s, v20.16b, " x0 ".16b\n smmla %" #l ".4s, v22.16b, " x0 ".16b\n" \
    "smmla %" #i ".4s, v17.16b, " x1 ".16b\n smmla %" #j ".4s, v19.16b, " x1 ".16b\n" \
    "smmla %" #k ".4s, v21.16b, " x1 ".16b\n smmla %" #l ".4s, v23.16b, " x1 ".16b\n"
    __asm__(START(0, 1, 2, 3) START(4, 5, 6, 7) START(8, 9, 10, 11) START(12, 13, 14, 15)
            "1:\n"
            ".rept 4\n"
            "ld1 {v16.16b, v17.16b, v18.16b, v19.16b}, [%[w]], #64\n"
            "ld1 {v20.16b, v21.16b, v22.16b, v23.16b}, [%[w]], #64\n"
            "ld1 {v24.16b, v25.16b, v26.16b, v27.16b}, [%[x]], #64\n"
            COLUMN_PAIR(0, 1, 2, 3, "v24", "v25")
            COLUMN_PAIR(4, 5, 6, 7, "v26", "v27")
            "ld1 {v24.16b, v25.16b, v26.16b, v27.16b}, [%[x]], #64\n"
            COLUMN_PAIR(8, 9, 10, 11, "v24", "v25")
            COLUMN_PAIR(12, 13, 14, 15, "v26", "v27")
            ".endr\n"
            "subs %[steps], %[steps], #4\n"
            "b.ne 1b\n"
            : "=&w"(acc[0][0]), "=&w"(acc[0][1]), "=&w"(acc[0][2]), "=&w"(acc[0][3]),
              "=&w"(acc[1][0]), "=&w"(acc[1][1]), "=&w"(acc[1][2]), "=&w"(acc[1][3]),
              "=&w"(acc[2][0]), "=&w"(acc[2][1]), "=&w"(acc[2][2]), "=&w"(acc[2][3]),
              "=&w"(acc[3][0]), "=&w"(acc[3][1]), "=&w"(acc[3][2]), "=&w"(acc[3][3]),
              [w] "+r"(w), [x] "+r"(x), [steps] "+r"(steps)
            : [start] "w"(sum_start()), "m"(*panel), "m"(*tile)
            : "cc", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27");
#undef START
#undef COLUMN_PAIR
    // clang-format on
}

// The same for fewer columns.
LUTRA_INLINE void sums_tail(int sb, int pairs, const struct gemm_panel *panel, const struct gemm_tile *tile,
                            int32x4_t acc[4][4]) {
    for (int p = 0; p < pairs; p++) {
        for (int r = 0; r < 4; r++) {
            acc[p][r] = sum_start();
        }
    }
    for (int i = 0; i < sb / 16; i++) {
        for (int p = 0; p < pairs; p++) {
            for (int r = 0; r < 4; r++) {
                acc[p][r] = vmmlaq_s32(acc[p][r], panel->w[i][r][0], tile->x[i][p][0]);
                acc[p][r] = vmmlaq_s32(acc[p][r], panel->w[i][r][1], tile->x[i][p][1]);
            }
        }
    }
}

// sums[column pair][row pair] += panel x tile.
LUTRA_INLINE void gemm_multiply(int sb, int pairs, const struct gemm_panel *panel,
                                const struct gemm_tile *tile, float32x4_t (*sums)[4]) {
    int32x4_t acc[GEMM_TILE][4];
    if (pairs == GEMM_TILE) {
        sums_8x8(sb, panel, tile, acc);
    } else {
        sums_tail(sb, pairs, panel, tile, acc);
    }
    const float32x4_t d[4] = {panel->d[0], panel->d[1], panel->d[2], panel->d[3]};
    for (int p = 0; p < pairs; p++) {
        for (int r = 0; r < 4; r++) {
            sums[p][r] = vfmaq_f32(sums[p][r], vmulq_f32(d[r], tile->d[p]), sum_float(acc[p][r]));
        }
    }
}

LUTRA_INLINE void gemm_columns(int sb, int pairs, int64_t s, int64_t n_strips,
                               const struct gemm_panel *panels, int64_t n, const struct lutra_column *columns,
                               gemm_sums *sums, int64_t pair) {
    struct gemm_tile tile;
    gemm_pack(sb, pairs, s, n, columns, &tile);
    for (int64_t i = 0; i < n_strips; i++) {
        gemm_multiply(sb, pairs, &panels[i], &tile, &sums[i][pair]);
    }
}

// y[8 rows] of two columns; y1 may be y0.
LUTRA_INLINE void gemm_unzip(const float32x4_t sums[4], float *y0, float *y1) {
    const float32x4_t first1 = vuzp2q_f32(sums[0], sums[1]), last1 = vuzp2q_f32(sums[2], sums[3]);
    const float32x4_t first0 = vuzp1q_f32(sums[0], sums[1]), last0 = vuzp1q_f32(sums[2], sums[3]);
    vst1q_f32(y1, first1);
    vst1q_f32(y1 + 4, last1);
    vst1q_f32(y0, first0);
    vst1q_f32(y0 + 4, last0);
}

LUTRA_INLINE void gemm_8x8(int cb, int sb, int64_t k, int64_t n_strips, const uint8_t *strips,
                           const int8_t *library, int64_t n, const struct lutra_column *columns) {
    const int64_t block_bytes = cb_block_bytes(cb, sb), strip_bytes = k / sb * block_bytes;
    struct gemm_panel panels[GEMM_STRIPS];
    gemm_sums sums[GEMM_STRIPS];
    for (; n > 0; n -= 2 * GEMM_PAIRS, columns += 2 * GEMM_PAIRS) {
        const int64_t width = n < 2 * GEMM_PAIRS ? n : 2 * GEMM_PAIRS;
        for (int64_t strip = 0; strip < n_strips; strip += GEMM_STRIPS) {
            const int64_t height = n_strips - strip < GEMM_STRIPS ? n_strips - strip : GEMM_STRIPS;
            memset(sums, 0, (size_t)height * sizeof(sums[0]));
            for (int64_t s = 0; s < k / sb; s++) {
                for (int64_t i = 0; i < height; i++) {
                    gemm_decode(cb, sb, strips + (strip + i) * strip_bytes + s * block_bytes, library,
                                &panels[i]);
                }
                int64_t c = 0;
                for (; width - c > 4; c += 8) {
                    gemm_columns(sb, 4, s, height, panels, width - c, columns + c, sums, c / 2);
                }
                for (; c < width; c += 4) {
                    gemm_columns(sb, 2, s, height, panels, width - c, columns + c, sums, c / 2);
                }
            }
            for (int64_t i = 0; i < height; i++) {
                const int64_t row = (strip + i) * LUTRA_ROWS;
                for (int64_t c = 0; c < width; c += 2) {
                    gemm_unzip(sums[i][c / 2], columns[c].y + row,
                               columns[c + 1 < width ? c + 1 : c].y + row);
                }
            }
        }
    }
}

#endif
