// SPDX-License-Identifier: MIT
// The parts of the NEON dot-product gemm: SDOT by lane multiplies 4 rows x 4 weights by 4 of the 16
// activations in a vector of one column.
#ifndef LUTRA_NEON_DOTPROD_PANEL_NEON_DOTPROD_H
#define LUTRA_NEON_DOTPROD_PANEL_NEON_DOTPROD_H

#include "../neon/panel.h"

// Panel: w[k / 16][rows 0..3, rows 4..7][k % 16 / 4], a vector is 4 rows x 4 weights; d[rows].
LUTRA_INLINE void gemm_decode(int cb, int sb, struct lutra_weights block, struct gemm_panel *panel) {
    panel->d[0] = load_d(block.strips);
    panel->d[1] = load_d(block.strips + 8);
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) { // rows 0..3, rows 4..7
            int8x16_t row[4][4];
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                cb_row(cb, chunk, 4 * half + r, row[r]);
            }
            for (int i = 0; i < 4; i++) { // ST4 writes 4 bytes of each row in turn
                const int32x4x4_t rows = {{
                    vreinterpretq_s32_s8(row[0][i]),
                    vreinterpretq_s32_s8(row[1][i]),
                    vreinterpretq_s32_s8(row[2][i]),
                    vreinterpretq_s32_s8(row[3][i]),
                }};
                vst4q_s32((int32_t *)&panel->w[8 * (c * LUTRA_CHUNK / 16 + i) + 4 * half], rows);
            }
        }
    }
}

// Tile: x[k / 16][column].
LUTRA_INLINE void gemm_pack(int sb, int width, const int8_t *const q[8], int8x16_t *x) {
    for (int i = 0; i < sb / 16; i++) {
        for (int c = 0; c < width; c++) {
            x[i * width + c] = vld1q_s8(q[c] + 16 * i);
        }
    }
}

// acc[column][rows 0..3, rows 4..7] = panel x tile for 8 columns. In assembly, because compilers load two
// vectors at a time: here 16 weights take 4 loads and 64 SDOT.
LUTRA_INLINE void sums_8x8(int sb, const struct gemm_panel *panel, const struct gemm_tile *tile,
                           int32x4_t acc[8][2]) {
    const int8x16_t *w = panel->w, *x = tile->x;
    int64_t steps = sb / 16;
    // clang-format off
#define START(i, j, k, l) \
    "mov %" #i ".16b, %[start].16b\n mov %" #j ".16b, %[start].16b\n" \
    "mov %" #k ".16b, %[start].16b\n mov %" #l ".16b, %[start].16b\n"
#define LANE(i, j, k, l, w0, w1, x0, x1, lane) \
    "sdot %" #i ".4s, " w0 ".16b, " x0 ".4b[" lane "]\n sdot %" #j ".4s, " w1 ".16b, " x0 ".4b[" lane "]\n" \
    "sdot %" #k ".4s, " w0 ".16b, " x1 ".4b[" lane "]\n sdot %" #l ".4s, " w1 ".16b, " x1 ".4b[" lane "]\n"
#define TWO_COLUMNS(i, j, k, l, x0, x1) \
    LANE(i, j, k, l, "v16", "v20", x0, x1, "0") LANE(i, j, k, l, "v17", "v21", x0, x1, "1") \
    LANE(i, j, k, l, "v18", "v22", x0, x1, "2") LANE(i, j, k, l, "v19", "v23", x0, x1, "3")
    __asm__(START(0, 1, 2, 3) START(4, 5, 6, 7) START(8, 9, 10, 11) START(12, 13, 14, 15)
            "1:\n"
            ".rept 2\n"
            "ld1 {v16.16b, v17.16b, v18.16b, v19.16b}, [%[w]], #64\n"
            "ld1 {v24.16b, v25.16b, v26.16b, v27.16b}, [%[x]], #64\n"
            "ld1 {v20.16b, v21.16b, v22.16b, v23.16b}, [%[w]], #64\n"
            TWO_COLUMNS(0, 1, 2, 3, "v24", "v25")
            TWO_COLUMNS(4, 5, 6, 7, "v26", "v27")
            "ld1 {v24.16b, v25.16b, v26.16b, v27.16b}, [%[x]], #64\n"
            TWO_COLUMNS(8, 9, 10, 11, "v24", "v25")
            TWO_COLUMNS(12, 13, 14, 15, "v26", "v27")
            ".endr\n"
            "subs %[steps], %[steps], #2\n"
            "b.ne 1b\n"
            : "=&w"(acc[0][0]), "=&w"(acc[0][1]), "=&w"(acc[1][0]), "=&w"(acc[1][1]),
              "=&w"(acc[2][0]), "=&w"(acc[2][1]), "=&w"(acc[3][0]), "=&w"(acc[3][1]),
              "=&w"(acc[4][0]), "=&w"(acc[4][1]), "=&w"(acc[5][0]), "=&w"(acc[5][1]),
              "=&w"(acc[6][0]), "=&w"(acc[6][1]), "=&w"(acc[7][0]), "=&w"(acc[7][1]),
              [w] "+r"(w), [x] "+r"(x), [steps] "+r"(steps)
            : [start] "w"(sum_start()), "m"(*panel), "m"(*tile)
            : "cc", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27");
#undef START
#undef LANE
#undef TWO_COLUMNS
    // clang-format on
}

// The same for fewer columns.
LUTRA_INLINE void sums_tail(int sb, int width, const struct gemm_panel *panel, const struct gemm_tile *tile,
                            int32x4_t acc[8][2]) {
    for (int c = 0; c < width; c++) {
        acc[c][0] = sum_start();
        acc[c][1] = sum_start();
    }
    for (int i = 0; i < sb / 16; i++) {
        const int8x16_t *w = panel->w + 8 * i;
        for (int c = 0; c < width; c++) {
            const int8x16_t x = tile->x[width * i + c];
            for (int half = 0; half < 2; half++) {
                acc[c][half] = vdotq_laneq_s32(acc[c][half], w[4 * half], x, 0);
                acc[c][half] = vdotq_laneq_s32(acc[c][half], w[4 * half + 1], x, 1);
                acc[c][half] = vdotq_laneq_s32(acc[c][half], w[4 * half + 2], x, 2);
                acc[c][half] = vdotq_laneq_s32(acc[c][half], w[4 * half + 3], x, 3);
            }
        }
    }
}

// Sums: [column][rows 0..3, rows 4..7].
LUTRA_INLINE void gemm_multiply(int sb, int width, const struct gemm_panel *panel,
                                const struct gemm_tile *tile, float32x4_t *restrict sums) {
    int32x4_t acc[8][2];
    if (width == 8) {
        sums_8x8(sb, panel, tile, acc);
    } else {
        sums_tail(sb, width, panel, tile, acc);
    }
    for (int c = 0; c < width; c++) {
        for (int half = 0; half < 2; half++) {
            float32x4_t *sum = &sums[2 * c + half];
            *sum = vfmaq_f32(*sum, vmulq_n_f32(panel->d[half], tile->d[c]), sum_float(acc[c][half]));
        }
    }
}

LUTRA_INLINE void gemm_finish(const float32x4_t *sums, int64_t n, const struct lutra_column *columns,
                              int64_t row) {
    for (int64_t c = 0; c < n; c++) {
        vst1q_f32(columns[c].y + row, sums[2 * c]);
        vst1q_f32(columns[c].y + row + 4, sums[2 * c + 1]);
    }
}

#endif
