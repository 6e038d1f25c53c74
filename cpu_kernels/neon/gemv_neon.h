// SPDX-License-Identifier: MIT
// The gemv body of the NEON kernels, with and without dot product: 8 rows x 1 column, one vector of int32
// sums per row.
#ifndef LUTRA_NEON_GEMV_NEON_H
#define LUTRA_NEON_GEMV_NEON_H

#include "cb_neon.h"

// acc += 64 weights of 8 rows. Left alone, compilers load the whole chunk first, which takes more registers
// than there are; the CPU finds the loads of the next rows by itself. So two rows are complete before the
// next two begin.
LUTRA_INLINE void gemv_chunk(int cb, struct lutra_weights chunk, const int8_t *q, int32x4_t acc[LUTRA_ROWS]) {
    int8x16_t x[4];
    load64(q, x);
    __asm__ volatile("" : : : "memory"); // and no load of x between those of the rows: LDP takes two
#pragma GCC unroll 4
    for (int row = 0; row < LUTRA_ROWS; row += 2) {
        int8x16_t w[2][4];
        cb_row(cb, chunk, row, w[0]);
        cb_row(cb, chunk, row + 1, w[1]);
        acc[row] = dot64(acc[row], w[0], x);
        acc[row + 1] = dot64(acc[row + 1], w[1], x);
        __asm__ volatile("" : : "w"(acc[row]), "w"(acc[row + 1]) : "memory");
    }
}

#if defined(__ARM_FEATURE_DOTPROD)
// acc += the chunks of a super-block of CB3; block and q move on. In assembly, because compilers take two
// instructions to load three vectors and copy pointers and sums: 0.4 more than these 10.4 per 32 weights.
LUTRA_INLINE void gemv_chunks_cb3(int chunks, const uint8_t **block, const int8_t *library, const int8_t **q,
                                  int32x4_t acc[LUTRA_ROWS]) {
    const uint8_t *codes = *block + 2 * LUTRA_ROWS;
    // clang-format off
// Operations on whole vectors.
#define AND(to, from, mask) "and " to ".16b, " from ".16b, %[" mask "].16b\n"
#define BIT(to, from, mask) "bit " to ".16b, " from ".16b, %[" mask "].16b\n"
#define HIGH(v) "ushr " v ".16b, " v ".16b, #4\n"
#define ZIP(v, lanes) "zip1 " v "." lanes ", " v "." lanes ", " v "." lanes "\n"
#define TBL(v, table) "tbl " v ".16b, {" table ".16b}, " v ".16b\n"
#define DOT(acc, w, x) "sdot %" #acc ".4s, " w ".16b, " x ".16b\n"
// Rows 2 i and 2 i + 1, as in cb3_row; `step` leads to the codes of the next two. The register of a table is
// the next one's for low codes. In this order V1 takes fewer cycles than in that of the lookups.
//
//                       codes, high  low  table  acc   x
//     row 2 i    group 0    v20      v28   v24   acc0  v16 (low) v17 (high)
//                group 1    v21      v24   v25   acc0  v18 v19
//     row 2 i+1  group 0    v22      v25   v26   acc1  v16 v17
//                group 1    v23      v26   v27   acc1  v18 v19    the donated bits
#define ROWS(i, acc0, acc1, step) \
    "ldurb w9, [%[codes], #-16 - 44 * " #i "]\n ldurb w10, [%[codes], #-15 - 44 * " #i "]\n" \
    "ldurb w11, [%[codes], #-14 - 44 * " #i "]\n ldurb w12, [%[codes], #-13 - 44 * " #i "]\n" \
    "ld1 {v20.16b, v21.16b, v22.16b}, [%[codes]], " step "\n" \
    "ldr d24, [%[library], x9, lsl #3]\n ldr d25, [%[library], x10, lsl #3]\n" \
    "ldr d26, [%[library], x11, lsl #3]\n ldr d27, [%[library], x12, lsl #3]\n" \
    AND("v23", "v20", "bit0") AND("v28", "v20", "nibble") HIGH("v20") ZIP("v24", "16b") \
    BIT("v23", "v21", "bit1") ZIP("v25", "8h") TBL("v28", "v24") TBL("v20", "v24") \
    AND("v24", "v21", "nibble") HIGH("v21") BIT("v23", "v22", "bit2") ZIP("v26", "4s") \
    TBL("v24", "v25") TBL("v21", "v25") DOT(acc0, "v28", "v16") \
    AND("v25", "v22", "nibble") HIGH("v22") DOT(acc0, "v20", "v17") TBL("v25", "v26") TBL("v22", "v26") \
    AND("v26", "v23", "nibble") HIGH("v23") DOT(acc0, "v24", "v18") TBL("v26", "v27") TBL("v23", "v27") \
    DOT(acc1, "v25", "v16") DOT(acc0, "v21", "v19") DOT(acc1, "v22", "v17") \
    DOT(acc1, "v26", "v18") DOT(acc1, "v23", "v19")
    __asm__ volatile("1:\n"
                     "ld1 {v16.16b, v17.16b, v18.16b, v19.16b}, [%[q]], #64\n"
                     ROWS(0, 0, 1, "#48")
                     ROWS(1, 2, 3, "#48")
                     ROWS(2, 4, 5, "#48")
                     ROWS(3, 6, 7, "%[next_chunk]")
                     "subs %w[chunks], %w[chunks], #1\n"
                     "b.ne 1b\n"
                     : "+&w"(acc[0]), "+&w"(acc[1]), "+&w"(acc[2]), "+&w"(acc[3]), "+&w"(acc[4]), "+&w"(acc[5]),
                       "+&w"(acc[6]), "+&w"(acc[7]), [codes] "+&r"(codes), [q] "+&r"(*q), [chunks] "+&r"(chunks)
                     : [library] "r"(library), [next_chunk] "r"(48 + (int64_t)2 * LUTRA_ROWS),
                       [nibble] "w"(vdupq_n_u8(0x0f)), [bit0] "w"(vdupq_n_u8(0x11)),
                       [bit1] "w"(vdupq_n_u8(0x22)), [bit2] "w"(vdupq_n_u8(0x44))
                     : "cc", "memory", "x9", "x10", "x11", "x12", "v16", "v17", "v18", "v19", "v20", "v21",
                       "v22", "v23", "v24", "v25", "v26", "v27", "v28");
#undef AND
#undef BIT
#undef HIGH
#undef ZIP
#undef TBL
#undef DOT
#undef ROWS
    // clang-format on
    *block = codes - 2 * LUTRA_ROWS;
}
#endif

// acc += the chunks of a super-block; block and q move on.
LUTRA_INLINE void gemv_chunks(int cb, int chunks, struct lutra_weights *block, const int8_t **q,
                              int32x4_t acc[LUTRA_ROWS]) {
#if defined(__ARM_FEATURE_DOTPROD)
    if (cb == 3) {
        gemv_chunks_cb3(chunks, &block->strips, block->library, q, acc);
        return;
    }
#endif
    const int step = chunks < 2 ? 1 : 2; // per turn of the loop
    for (int c = 0; c < chunks; c += step) {
        gemv_chunk(cb, *block, *q, acc);
        if (step == 2) {
            gemv_chunk(cb, cb_next(cb, *block, 1), *q + LUTRA_CHUNK, acc);
        }
        *block = cb_next(cb, *block, step);
        *q += step * LUTRA_CHUNK;
    }
}

LUTRA_INLINE void gemv(int cb, int sb, int64_t k, int64_t n_strips, struct lutra_weights w, const int8_t *q,
                       const float *d, float *y) {
    int8x16x2_t tables[LUTRA_TABLES];
    struct lutra_weights block = cb_prepare(cb, w, tables);
    // acc is never reset: modulo 2^32, the sum of a super-block is what the sums have grown by
    int32x4_t acc[LUTRA_ROWS], before0 = vdupq_n_s32(0), before1 = vdupq_n_s32(0);
#pragma GCC unroll 8
    for (int row = 0; row < LUTRA_ROWS; row++) {
        acc[row] = vdupq_n_s32(0);
    }
    for (int64_t strip = 0; strip < n_strips; strip++) {
        float32x4_t y0 = vdupq_n_f32(0), y1 = vdupq_n_f32(0);
        const int8_t *x = q;
        for (uint64_t s = 0; s < (uint64_t)k / sb; s++) { // unsigned: the division is one shift
            const float32x4_t d0 = vmulq_n_f32(load_d(block.strips), d[s]);
            const float32x4_t d1 = vmulq_n_f32(load_d(block.strips + 8), d[s]);
            block.strips += 2 * LUTRA_ROWS;
            gemv_chunks(cb, sb / LUTRA_CHUNK, &block, &x, acc);
            const int32x4_t after0 = sum_lanes(acc), after1 = sum_lanes(acc + 4);
            y0 = vfmaq_f32(y0, d0, vcvtq_f32_s32(vsubq_s32(after0, before0)));
            y1 = vfmaq_f32(y1, d1, vcvtq_f32_s32(vsubq_s32(after1, before1)));
            before0 = after0;
            before1 = after1;
            __asm__("" : "+r"(block.strips), "+r"(x)); // these two pointers, not others computed from s
        }
        vst1q_f32(y, y0);
        vst1q_f32(y + 4, y1);
        y += LUTRA_ROWS;
    }
}

#endif
