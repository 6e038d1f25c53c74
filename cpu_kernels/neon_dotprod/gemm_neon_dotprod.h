// The gemm body of the NEON dot-product kernels; `cb` and `sb` are constants at every call.
#ifndef LUTRA_NEON_DOTPROD_GEMM_NEON_DOTPROD_H
#define LUTRA_NEON_DOTPROD_GEMM_NEON_DOTPROD_H

#include "../neon/cb_neon.h"

// A super-block of one strip is decoded once and meets all columns.

enum { GEMM_COLUMNS = 8 }; // columns per register tile: 16 accumulators

// Entries of 8 rows x sb weights: [k / 4][row][k % 4], two vectors of 4 rows x 4 weights per step.
struct gemm_panel {
    int8x16_t w[256 / 4][2];
    float32x4_t d[2];
};

// 16 weights of 4 rows -> the vectors of 4 steps (a 4 x 4 transposition of 4-byte units).
LUTRA_INLINE void transpose(const int8x16_t row[4], int8x16_t out[4]) {
    const int32x4_t r0 = vreinterpretq_s32_s8(row[0]), r1 = vreinterpretq_s32_s8(row[1]);
    const int32x4_t r2 = vreinterpretq_s32_s8(row[2]), r3 = vreinterpretq_s32_s8(row[3]);
    const int64x2_t even01 = vreinterpretq_s64_s32(vtrn1q_s32(r0, r1));
    const int64x2_t odd01 = vreinterpretq_s64_s32(vtrn2q_s32(r0, r1));
    const int64x2_t even23 = vreinterpretq_s64_s32(vtrn1q_s32(r2, r3));
    const int64x2_t odd23 = vreinterpretq_s64_s32(vtrn2q_s32(r2, r3));
    out[0] = vreinterpretq_s8_s64(vtrn1q_s64(even01, even23));
    out[1] = vreinterpretq_s8_s64(vtrn1q_s64(odd01, odd23));
    out[2] = vreinterpretq_s8_s64(vtrn2q_s64(even01, even23));
    out[3] = vreinterpretq_s8_s64(vtrn2q_s64(odd01, odd23));
}

LUTRA_INLINE void gemm_decode(int cb, int sb, const uint8_t *block, const int8_t *library,
                              struct gemm_panel *panel) {
    panel->d[0] = load_d(block);
    panel->d[1] = load_d(block + 8);
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const uint8_t *chunk = block + 2 * LUTRA_ROWS + c * cb_chunk_bytes(cb);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) { // rows 0..3, rows 4..7
            int8x16_t w[4][4];                 // [16 weights][row]
#pragma GCC unroll 4
            for (int row = 0; row < 4; row++) {
                int8x16_t of_row[4];
                cb_row(cb, chunk, library, 4 * half + row, of_row);
                for (int i = 0; i < 4; i++) {
                    w[i][row] = of_row[i];
                }
            }
            for (int i = 0; i < 4; i++) {
                int8x16_t steps[4];
                transpose(w[i], steps);
                for (int j = 0; j < 4; j++) {
                    panel->w[c * LUTRA_CHUNK / 4 + 4 * i + j][half] = steps[j];
                }
            }
        }
    }
}

// y[row] (+)= panel x columns for super-block s.
LUTRA_INLINE void gemm_tile(int sb, int n, int64_t s, const struct gemm_panel *panel,
                            const struct lutra_column *column, int64_t row) {
    int32x4_t acc0[GEMM_COLUMNS], acc1[GEMM_COLUMNS]; // rows 0..3, rows 4..7
    const int8_t *q[GEMM_COLUMNS];
    for (int c = 0; c < n; c++) {
        q[c] = column[c].q + s * sb;
        acc0[c] = vdupq_n_s32(0);
        acc1[c] = vdupq_n_s32(0);
    }
    for (int i = 0; i < sb / 16; i++) { // 4 steps of 4 weights; lane j of x is the column's step j
        const int8x16_t(*w)[2] = panel->w + 4 * i;
        for (int c = 0; c < n; c++) {
            const int8x16_t x = vld1q_s8(q[c] + 16 * i);
            acc0[c] = vdotq_laneq_s32(acc0[c], w[0][0], x, 0);
            acc1[c] = vdotq_laneq_s32(acc1[c], w[0][1], x, 0);
            acc0[c] = vdotq_laneq_s32(acc0[c], w[1][0], x, 1);
            acc1[c] = vdotq_laneq_s32(acc1[c], w[1][1], x, 1);
            acc0[c] = vdotq_laneq_s32(acc0[c], w[2][0], x, 2);
            acc1[c] = vdotq_laneq_s32(acc1[c], w[2][1], x, 2);
            acc0[c] = vdotq_laneq_s32(acc0[c], w[3][0], x, 3);
            acc1[c] = vdotq_laneq_s32(acc1[c], w[3][1], x, 3);
        }
    }
    for (int c = 0; c < n; c++) {
        gemm_store(s, panel->d[0], column[c].d[s], acc0[c], column[c].y + row);
        gemm_store(s, panel->d[1], column[c].d[s], acc1[c], column[c].y + row + 4);
    }
}

LUTRA_INLINE void gemm_8x8(int cb, int sb, int64_t k, int64_t n_strips, const uint8_t *blocks,
                           const int8_t *library, int64_t n, const struct lutra_column *columns) {
    struct gemm_panel panel;
    for (int64_t first = 0; first < n; first += GEMM_BLOCK) {
        const int64_t end = first + GEMM_BLOCK < n ? first + GEMM_BLOCK : n;
        const uint8_t *block = blocks;
        for (int64_t row = 0; row < n_strips * LUTRA_ROWS; row += LUTRA_ROWS) {
            for (int64_t s = 0; s < k / sb; s++, block += cb_block_bytes(cb, sb)) {
                gemm_decode(cb, sb, block, library, &panel);
                int64_t c = first;
                for (; end - c >= 8; c += 8) {
                    gemm_tile(sb, 8, s, &panel, columns + c, row);
                }
                for (; end - c >= 4; c += 4) {
                    gemm_tile(sb, 4, s, &panel, columns + c, row);
                }
                for (; c < end; c++) {
                    gemm_tile(sb, 1, s, &panel, columns + c, row);
                }
            }
        }
    }
}

#endif
