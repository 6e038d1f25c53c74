// SPDX-License-Identifier: MIT
// The parts of the NEON i8mm gemm. SMMLA multiplies 2 rows x 8 weights by 8 weights x 2 columns: an operand
// is 8 bytes of one row or column and 8 bytes of the next, and the four lanes of a sum are
//
//     row 0 x column 0, row 0 x column 1, row 1 x column 0, row 1 x column 1
//
// The float sums keep this order until they are stored.
#ifndef LUTRA_NEON_I8MM_PANEL_NEON_I8MM_H
#define LUTRA_NEON_I8MM_PANEL_NEON_I8MM_H

#include "../neon/panel.h"

// 16 bytes of two rows or columns -> two operands. ST2 writes 8 bytes of each in turn.
LUTRA_INLINE void store_pair(int8x16_t to[2], int8x16_t a, int8x16_t b) {
    const int64x2x2_t pair = {{vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)}};
    vst2q_s64((int64_t *)to, pair);
}

// Panel: w[k / 16][row pair][k % 16 / 8]; d[row pair]: row 0, row 0, row 1, row 1.
LUTRA_INLINE void gemm_decode(int cb, int sb, struct lutra_weights block, struct gemm_panel *panel) {
    for (int i = 0; i < 2; i++) {
        const float32x4_t d = load_d(block.strips + 8 * i);
        panel->d[2 * i] = vzip1q_f32(d, d);
        panel->d[2 * i + 1] = vzip2q_f32(d, d);
    }
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
#pragma GCC unroll 4
        for (int r = 0; r < LUTRA_ROWS / 2; r++) {
            int8x16_t row0[4], row1[4];
            cb_row(cb, chunk, 2 * r, row0);
            cb_row(cb, chunk, 2 * r + 1, row1);
            for (int i = 0; i < 4; i++) {
                store_pair(&panel->w[8 * (c * LUTRA_CHUNK / 16 + i) + 2 * r], row0[i], row1[i]);
            }
        }
    }
}

// Tile: x[k / 16][column pair][k % 16 / 8].
LUTRA_INLINE void gemm_pack(int sb, int width, const int8_t *const q[8], int8x16_t *x) {
    for (int i = 0; i < sb / 16; i++) {
        for (int c = 0; c < width; c += 2) {
            store_pair(&x[i * width + c], vld1q_s8(q[c] + 16 * i), vld1q_s8(q[c + 1] + 16 * i));
        }
    }
}

// acc[column pair][row pair] = panel x tile for 8 rows x 8 columns. In assembly, because compilers spend up
// to twice as many instructions on loads and copies: here 16 weights take 4 loads and 32 SMMLA.
LUTRA_INLINE void sums_8x8(int sb, const struct gemm_panel *panel, const struct gemm_tile *tile,
                           int32x4_t acc[4][4]) {
    const int8x16_t *w = panel->w, *x = tile->x;
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
LUTRA_INLINE void sums_tail(int sb, int width, const struct gemm_panel *panel, const struct gemm_tile *tile,
                            int32x4_t acc[4][4]) {
    for (int p = 0; p < width / 2; p++) {
        for (int r = 0; r < 4; r++) {
            acc[p][r] = sum_start();
        }
    }
    for (int i = 0; i < sb / 16; i++) {
        const int8x16_t *w = panel->w + 8 * i, *x = tile->x + width * i;
        for (int p = 0; p < width / 2; p++) {
            for (int r = 0; r < 4; r++) {
                acc[p][r] = vmmlaq_s32(acc[p][r], w[2 * r], x[2 * p]);
                acc[p][r] = vmmlaq_s32(acc[p][r], w[2 * r + 1], x[2 * p + 1]);
            }
        }
    }
}

// sum + d_w * d_x * acc for a row pair, d_w in lanes as in a panel, and a column pair.
LUTRA_INLINE float32x4_t add_products(float32x4_t sum, float32x4_t d_w, const float d_x[2], int32x4_t acc) {
    const float32x2_t d01 = vld1_f32(d_x);
    return vfmaq_f32(sum, vmulq_f32(d_w, vcombine_f32(d01, d01)), sum_float(acc));
}

// Sums: [column pair][row pair].
LUTRA_INLINE void gemm_multiply(int sb, int width, const struct gemm_panel *panel,
                                const struct gemm_tile *tile, float32x4_t *restrict sums) {
    int32x4_t acc[4][4];
    if (width == 8) {
        sums_8x8(sb, panel, tile, acc);
    } else {
        sums_tail(sb, width, panel, tile, acc);
    }
    for (int p = 0; p < width / 2; p++) {
        for (int r = 0; r < 4; r++) {
            float32x4_t *sum = &sums[4 * p + r];
            *sum = add_products(*sum, panel->d[r], tile->d + 2 * p, acc[p][r]);
        }
    }
}

LUTRA_INLINE void gemm_finish(const float32x4_t *sums, int64_t n, const struct lutra_column *columns,
                              int64_t row) {
    for (int64_t c = 0; c < n; c += 2) {
        const float32x4_t *sum = sums + 2 * c;
        vst1q_f32(columns[c].y + row, vuzp1q_f32(sum[0], sum[1]));
        vst1q_f32(columns[c].y + row + 4, vuzp1q_f32(sum[2], sum[3]));
        if (c + 1 < n) {
            vst1q_f32(columns[c + 1].y + row, vuzp2q_f32(sum[0], sum[1]));
            vst1q_f32(columns[c + 1].y + row + 4, vuzp2q_f32(sum[2], sum[3]));
        }
    }
}

#endif
