// SPDX-License-Identifier: MIT
// What the NEON kernels share: the table lookups of a row, and its products with activations. neon_dotprod/
// includes this header too; its compiler flags select the dot-product instruction below.
#ifndef LUTRA_NEON_CB_NEON_H
#define LUTRA_NEON_CB_NEON_H

#include "../common.h"

#include <arm_neon.h>

LUTRA_INLINE uint8x16_t low_nibbles(uint8x16_t v) {
    return vandq_u8(v, vdupq_n_u8(15));
}

LUTRA_INLINE uint8x16_t high_nibbles(uint8x16_t v) {
    return vshrq_n_u8(v, 4);
}

// Table `selector` of 16 entries. gcc knows no register offset that is scaled by 16, so it is told.
LUTRA_INLINE int8x16_t table16(const int8_t *library, size_t selector) {
#if defined(__clang__)
    return vld1q_s8(library + 16 * selector);
#else
    int8x16_t table;
    __asm__("ldr %q0, [%1, %2, lsl 4]"
            : "=w"(table)
            : "r"(library), "r"(selector), "m"(*(const int8_t (*)[16 * LUTRA_TABLES]) library));
    return table;
#endif
}

// The 64 entries of one row of a chunk, in order: w[i] = 16 i .. 16 i + 15.

// 4-bit pairs: CB2's, and those of CB6's second layer.
LUTRA_INLINE void pair_row(const uint8_t *chunk, const uint8_t *codes, const int8_t *library, int row,
                           int8x16_t w[4]) {
    const int8x16x2_t table0 = vld1q_s8_x2(library + (size_t)32 * chunk[2 * row]); // T_a, T_b of group 0
    const int8x16x2_t table1 = vld1q_s8_x2(library + (size_t)32 * chunk[2 * row + 1]);
    const uint8x16_t v = vld1q_u8(codes);
    const uint8x16_t low = low_nibbles(v), high = high_nibbles(v);
    w[0] = vqtbl1q_s8(table0.val[0], low);
    w[1] = vqtbl1q_s8(table0.val[1], low);
    w[2] = vqtbl1q_s8(table1.val[0], high);
    w[3] = vqtbl1q_s8(table1.val[1], high);
}

// One group of 16 + 16 codes in the nibbles of v.
LUTRA_INLINE void lookup(int8x16_t table, uint8x16_t v, int8x16_t w[2]) {
    w[0] = vqtbl1q_s8(table, low_nibbles(v));
    w[1] = vqtbl1q_s8(table, high_nibbles(v));
}

LUTRA_INLINE void cb4_row(const uint8_t *chunk, const int8_t *library, int row, int8x16_t w[4]) {
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 32 * row;
    lookup(table16(library, chunk[2 * row]), vld1q_u8(codes), w);
    lookup(table16(library, chunk[2 * row + 1]), vld1q_u8(codes + 16), w + 2);
}

// A table of 8 entries. As it is, bit 3 of an index must be 0; expanded, bit 0, 1 or 2 is ignored.
LUTRA_INLINE int8x16_t table8(const int8_t *library, size_t selector) {
    return vcombine_s8(vld1_s8(library + 8 * selector), vcreate_s8(0));
}

LUTRA_INLINE int8x16_t ignore_bit0(int8x16_t t) {
    return vzip1q_s8(t, t);
}

LUTRA_INLINE int8x16_t ignore_bit1(int8x16_t t) {
    return vreinterpretq_s8_s16(vzip1q_s16(vreinterpretq_s16_s8(t), vreinterpretq_s16_s8(t)));
}

LUTRA_INLINE int8x16_t ignore_bit2(int8x16_t t) {
    return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(t), vreinterpretq_s32_s8(t)));
}

// v with the bits of a mask taken from another vector. As vbslq_u8, clang makes three operations of it.
LUTRA_INLINE uint8x16_t insert_bits(uint8x16_t v, uint8x16_t from, uint8x16_t mask) {
    __asm__("bit %0.16b, %1.16b, %2.16b" : "+w"(v) : "w"(from), "w"(mask));
    return v;
}

LUTRA_INLINE void cb3_row(const uint8_t *chunk, const int8_t *library, int row, int8x16_t w[4]) {
    const int8x16_t table0 = table8(library, chunk[2 * row]);
    const int8x16_t table1 = table8(library, chunk[2 * row + 1]);
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 48 * (row / 2);
    const uint8x16_t v0 = vld1q_u8(codes), v1 = vld1q_u8(codes + 16);
    if (row % 2 == 0) {
        lookup(ignore_bit0(table0), v0, w);
        lookup(ignore_bit1(table1), v1, w + 2);
    } else { // v2, and the donated bits: bit i of each nibble from vector i
        const uint8x16_t v2 = vld1q_u8(codes + 32);
        uint8x16_t donated = vandq_u8(v0, vdupq_n_u8(0x11));
        donated = insert_bits(donated, v1, vdupq_n_u8(0x22));
        donated = insert_bits(donated, v2, vdupq_n_u8(0x44));
        lookup(ignore_bit2(table0), v2, w);
        lookup(table1, donated, w + 2);
    }
}

// The nibbles of v with a fifth bit each: bit 2 pair of `bits` for the low ones, bit 2 pair + 1 for the high
// ones. SRI wants its bit at 4, SLI at 0, and each overwrites what the other one needs; so the bits of two
// pairs are spread crosswise, for both to be free when the next pair comes.
LUTRA_INLINE void five_bits(uint8x16_t v, uint8x16_t bits, int pair, uint8x16_t index[2]) {
    static const uint8_t spread[2][16] = {
        {0, 0, 16, 16, 1, 1, 17, 17, 0, 0, 16, 16, 1, 1, 17, 17}, // of a nibble bit 1 to 4 and bit 2 to 0
        {0, 1, 0, 1, 0, 1, 0, 1, 16, 17, 16, 17, 16, 17, 16, 17}, // bit 3 to 4 and bit 0 to 0
    };
    const uint8x16_t nibbles = pair < 2 ? low_nibbles(bits) : high_nibbles(bits);
    index[1] = vsriq_n_u8(vqtbl1q_u8(vld1q_u8(spread[pair % 2]), nibbles), v, 4);
#if !defined(__clang__)
    __asm__("" : "+w"(v), "+w"(index[1])); // gcc would turn the two around, and copy v
#endif
    index[0] = vsliq_n_u8(v, vqtbl1q_u8(vld1q_u8(spread[1 - pair % 2]), nibbles), 4);
}

// CB5's sums T1 + T2[0] | T1 + T2[1] of each selector, made once per call: a table of 32 entries, whose index
// is both codes.
LUTRA_INLINE void cb5_tables(const int8_t *library, int8x16x2_t tables[LUTRA_TABLES]) {
    const int8_t *second = library + 16 * LUTRA_TABLES;
    for (int left = LUTRA_TABLES; left != 0; left -= 2) { // two selectors
        const int8x16x2_t base = vld1q_s8_x2(library);
        const int8x16x4_t added = vld4q_dup_s8(second);
        const int8x16x4_t sums = {{
            vaddq_s8(base.val[0], added.val[0]),
            vaddq_s8(base.val[0], added.val[1]),
            vaddq_s8(base.val[1], added.val[2]),
            vaddq_s8(base.val[1], added.val[3]),
        }};
        vst1q_s8_x4((int8_t *)tables, sums);
        library += 32, second += 4, tables += 2;
        __asm__("" : "+r"(left)); // gcc would count addresses, for two instructions more
    }
}

LUTRA_INLINE void cb5_row(const uint8_t *chunk, const uint8_t *second, const int8_t *tables, int row,
                          int8x16_t w[4]) {
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 32 * row;
    const uint8x16_t bits = vld1q_u8(second + 16 * (row / 2));
    for (int g = 0; g < 2; g++) {
        const int8x16x2_t table = vld1q_s8_x2(tables + (size_t)32 * chunk[2 * row + g]);
        uint8x16_t index[2];
        five_bits(vld1q_u8(codes + 16 * g), bits, 2 * (row % 2) + g, index);
        w[2 * g] = vqtbl2q_s8(table, index[0]);
        w[2 * g + 1] = vqtbl2q_s8(table, index[1]);
    }
}

// `library` is the second one, right behind the first.
LUTRA_INLINE void cb6_row(const uint8_t *chunk, const uint8_t *second, const int8_t *library, int row,
                          int8x16_t w[4]) {
    int8x16_t added[4];
    cb4_row(chunk, library - 16 * LUTRA_TABLES, row, w);
    pair_row(chunk, second + 16 * row, library, row, added);
    for (int i = 0; i < 4; i++) {
        w[i] = vaddq_s8(w[i], added[i]);
    }
}

// One group in two tables of 32 entries, T_a and T_b. gcc would copy pairs out of four registers.
LUTRA_INLINE void lookup2(const int8_t *tables, uint8x16_t index, int8x16_t w[2]) {
    const int8x16x4_t t = vld1q_s8_x4(tables);
#if defined(__clang__)
    w[0] = vqtbl2q_s8((int8x16x2_t){{t.val[0], t.val[1]}}, index);
    w[1] = vqtbl2q_s8((int8x16x2_t){{t.val[2], t.val[3]}}, index);
#else
    __asm__("tbl %0.16b, {%S1.16b, %T1.16b}, %2.16b" : "=w"(w[0]) : "w"(t), "w"(index));
    __asm__("tbl %0.16b, {%U1.16b, %V1.16b}, %2.16b" : "=w"(w[1]) : "w"(t), "w"(index));
#endif
}

LUTRA_INLINE void cb25_row(const uint8_t *chunk, const int8_t *library, int row, int8x16_t w[4]) {
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 80 * (row / 4);
    uint8x16_t index[2];
    five_bits(vld1q_u8(codes + 16 * (row % 4)), vld1q_u8(codes + 64), row % 4, index);
    for (int g = 0; g < 2; g++) {
        lookup2(library + (size_t)64 * chunk[2 * row + g], index[g], w + 2 * g);
    }
}

// Where the rows of a call look: in the library, for CB5 in sums of its tables, for CB6 in the second
// library, because addresses of two tables have no offset.
LUTRA_INLINE struct lutra_weights cb_prepare(int cb, struct lutra_weights w,
                                             int8x16x2_t tables[LUTRA_TABLES]) {
    if (cb == 5) {
        cb5_tables(w.library, tables);
        w.library = (const int8_t *)tables;
    } else if (cb == 6) {
        w.library += 16 * LUTRA_TABLES;
    }
    return w;
}

LUTRA_INLINE void cb_row(int cb, struct lutra_weights chunk, int row, int8x16_t w[4]) {
    if (cb == 2) {
        pair_row(chunk.strips, chunk.strips + 2 * LUTRA_ROWS + 16 * row, chunk.library, row, w);
    } else if (cb == 3) {
        cb3_row(chunk.strips, chunk.library, row, w);
    } else if (cb == 5) {
        cb5_row(chunk.strips, chunk.second, chunk.library, row, w);
    } else if (cb == 6) {
        cb6_row(chunk.strips, chunk.second, chunk.library, row, w);
    } else if (cb == 25) {
        cb25_row(chunk.strips, chunk.library, row, w);
    } else {
        cb4_row(chunk.strips, chunk.library, row, w);
    }
}

// d of 4 rows.
LUTRA_INLINE float32x4_t load_d(const uint8_t *d) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(d)));
}

// ---- products: one vector of int32 sums per row and column -----------------------------------

// The sum of the 4 lanes of each a[i] -> lane i.
LUTRA_INLINE int32x4_t sum_lanes(const int32x4_t a[4]) {
    return vpaddq_s32(vpaddq_s32(a[0], a[1]), vpaddq_s32(a[2], a[3]));
}

// acc += the products of 64 weights and activations, in any distribution over the lanes.
LUTRA_INLINE int32x4_t dot64(int32x4_t acc, const int8x16_t w[4], const int8x16_t x[4]) {
#if defined(__ARM_FEATURE_DOTPROD)
    for (int i = 0; i < 4; i++) {
        acc = vdotq_s32(acc, w[i], x[i]);
    }
#else
    for (int i = 0; i < 4; i += 2) { // two products per int16 lane: at most 2 * 127 * 127 < 2^15
        int16x8_t low = vmull_s8(vget_low_s8(w[i]), vget_low_s8(x[i]));
        int16x8_t high = vmull_high_s8(w[i], x[i]);
        low = vmlal_s8(low, vget_low_s8(w[i + 1]), vget_low_s8(x[i + 1]));
        high = vmlal_high_s8(high, w[i + 1], x[i + 1]);
        acc = vpadalq_s16(vpadalq_s16(acc, low), high);
    }
#endif
    return acc;
}

// The same for bodies of several columns, whose sums gcc would copy.
LUTRA_INLINE int32x4_t dot64_in_place(int32x4_t acc, const int8x16_t w[4], const int8x16_t x[4]) {
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__clang__)
    __asm__("sdot %0.4s, %1.16b, %5.16b\n sdot %0.4s, %2.16b, %6.16b\n"
            "sdot %0.4s, %3.16b, %7.16b\n sdot %0.4s, %4.16b, %8.16b"
            : "+w"(acc)
            : "w"(w[0]), "w"(w[1]), "w"(w[2]), "w"(w[3]), "w"(x[0]), "w"(x[1]), "w"(x[2]), "w"(x[3]));
    return acc;
#else
    return dot64(acc, w, x);
#endif
}

LUTRA_INLINE void load64(const int8_t *q, int8x16_t x[4]) {
    for (int i = 0; i < 4; i++) {
        x[i] = vld1q_s8(q + 16 * i);
    }
}

// ---- gemm ------------------------------------------------------------------------------------

enum { GEMM_BLOCK = 128 }; // columns per decoded super-block: their q stay in L2

// y[4 rows] (+)= d * d_x * isum for super-block s.
LUTRA_INLINE void gemm_store(int64_t s, float32x4_t d, float d_x, int32x4_t isum, float *y) {
    const float32x4_t sum = s == 0 ? vdupq_n_f32(0) : vld1q_f32(y);
    vst1q_f32(y, vfmaq_f32(sum, vmulq_n_f32(d, d_x), vcvtq_f32_s32(isum)));
}

#endif
