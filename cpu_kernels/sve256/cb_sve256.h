// SPDX-License-Identifier: MIT
// What the SVE-256 kernels share: the table lookups of a row. The vector length is 256 bits exactly.
#ifndef LUTRA_SVE256_CB_SVE256_H
#define LUTRA_SVE256_CB_SVE256_H

#include "../neon/cb_neon.h"

#include <arm_sve.h>
#include <string.h>

typedef svint8_t int8x32 __attribute__((arm_sve_vector_bits(256)));
typedef svint32_t int32x8 __attribute__((arm_sve_vector_bits(256)));
typedef svfloat32_t float32x8 __attribute__((arm_sve_vector_bits(256)));

#define ALL svptrue_b8()
#define LOWER_HALF svptrue_pat_b8(SV_VL16)
#define UPPER_HALF svnot_z(ALL, LOWER_HALF)

// The byte offset of the table of selector i out of 4. The mask is kept in a register, where one AND
// shifts as well.
LUTRA_INLINE uint64_t table_offset(uint32_t selectors, int i, int log2_bytes) {
    uint32_t mask = 255u << log2_bytes;
    __asm__("" : "+r"(mask));
    const int shift = 8 * i - log2_bytes;
    return (shift < 0 ? selectors << -shift : selectors >> shift) & mask;
}

// 16 code bytes in both halves: low nibbles in the lower half, high nibbles in the upper.
LUTRA_INLINE svuint8_t nibbles(svuint8_t v, uint8_t mask) {
    const svuint8_t masks = svsel(LOWER_HALF, svdup_u8(mask), svdup_u8((uint8_t)(mask << 4)));
    return svlsr_m(UPPER_HALF, svand_x(ALL, v, masks), 4);
}

// The entries of rows 2 pair and 2 pair + 1 of a chunk, in order: w[row][group] = the 32 of a group.

LUTRA_INLINE void cb2_row_pair(const uint8_t *codes, const int8_t *library, uint32_t selectors,
                               int8x32 w[2][2]) {
    const svuint8_t upper = svand_x(ALL, svindex_u8(0, 1), 16); // table T_b follows T_a
    for (int row = 0; row < 2; row++) {
        const svuint8_t v = svld1rq(ALL, codes + 16 * row);
        const svint8_t table0 = svld1(ALL, library + table_offset(selectors, 2 * row, 5));
        const svint8_t table1 = svld1(ALL, library + table_offset(selectors, 2 * row + 1, 5));
        w[row][0] = svtbl(table0, svorr_x(ALL, svand_x(ALL, v, 15), upper));
        w[row][1] = svtbl(table1, svorr_x(ALL, svlsr_x(ALL, v, 4), upper));
    }
}

LUTRA_INLINE void cb4_row_pair(const uint8_t *codes, const int8_t *library, uint32_t selectors,
                               int8x32 w[2][2]) {
    for (int i = 0; i < 4; i++) {
        const svint8_t table = svld1(LOWER_HALF, library + table_offset(selectors, i, 4));
        w[i / 2][i % 2] = svtbl(table, nibbles(svld1rq(ALL, codes + 16 * i), 15));
    }
}

// A table of 8 entries, expanded so that a nibble of vector i works as the index: bit i is ignored.
LUTRA_INLINE svint8_t cb3_table32(const int8_t *library, uint32_t selectors, int i) {
    const svint8_t t = svld1(svptrue_pat_b8(SV_VL8), library + table_offset(selectors, i, 3));
    const svint16_t t16 = svreinterpret_s16_s8(t);
    const svint32_t t32 = svreinterpret_s32_s8(t);
    return i == 0   ? svzip1(t, t)
           : i == 1 ? svreinterpret_s8_s16(svzip1(t16, t16))
           : i == 2 ? svreinterpret_s8_s32(svzip1(t32, t32))
                    : t;
}

LUTRA_INLINE void cb3_row_pair(const uint8_t *codes, const int8_t *library, uint32_t selectors,
                               int8x32 w[2][2]) {
    const svuint8_t v0 = svld1rq(ALL, codes), v1 = svld1rq(ALL, codes + 16), v2 = svld1rq(ALL, codes + 32);
    w[0][0] = svtbl(cb3_table32(library, selectors, 0), nibbles(v0, 15));
    w[0][1] = svtbl(cb3_table32(library, selectors, 1), nibbles(v1, 15));
    w[1][0] = svtbl(cb3_table32(library, selectors, 2), nibbles(v2, 15));
    // The donated bits: bit i of each nibble from vector i.
    const svuint8_t v01 = svorr_x(ALL, svand_x(ALL, v0, 0x11), svand_x(ALL, v1, 0x22));
    const svuint8_t v012 = svorr_x(ALL, v01, svand_x(ALL, v2, 0x44));
    w[1][1] = svtbl(cb3_table32(library, selectors, 3), nibbles(v012, 7));
}

// Low and high nibbles as in nibbles(), with a fifth bit each: bits 2 pair and 2 pair + 1 of `bits`.
LUTRA_INLINE svuint8_t five_bits32(const uint8_t *codes, const uint8_t *bits, int pair) {
    const svuint8_t masks =
        svsel(LOWER_HALF, svdup_u8((uint8_t)(1 << 2 * pair)), svdup_u8((uint8_t)(2 << 2 * pair)));
    const svbool_t set = svcmpne(ALL, svand_x(ALL, svld1rq(ALL, bits), masks), 0);
    return svorr_m(set, nibbles(svld1rq(ALL, codes), 15), 16);
}

LUTRA_INLINE void cb5_row_pair(const uint8_t *codes, const uint8_t *second, const int8_t *tables,
                               uint32_t selectors, int8x32 w[2][2]) {
    for (int i = 0; i < 4; i++) {
        const svint8_t table = svld1(ALL, tables + table_offset(selectors, i, 5));
        w[i / 2][i % 2] = svtbl(table, five_bits32(codes + 16 * i, second, i));
    }
}

// `library` is the second one, right behind the first.
LUTRA_INLINE void cb6_row_pair(const uint8_t *codes, const uint8_t *second, const int8_t *library,
                               uint32_t selectors, int8x32 w[2][2]) {
    int8x32 added[2][2];
    cb4_row_pair(codes, library - 16 * LUTRA_TABLES, selectors, w);
    cb2_row_pair(second, library, selectors, added);
    for (int i = 0; i < 4; i++) {
        w[i / 2][i % 2] = svadd_x(ALL, w[i / 2][i % 2], added[i / 2][i % 2]);
    }
}

LUTRA_INLINE void cb25_row_pair(const uint8_t *codes, const int8_t *library, int pair, uint32_t selectors,
                                int8x32 w[2][2]) {
    for (int row = 0; row < 2; row++) {
        const int i = 2 * (pair % 2) + row; // of the 4 rows that share vector 4
        const svuint8_t index = five_bits32(codes + 16 * i, codes + 64, i); // of group 0, of group 1
        const svuint8_t swapped = svext(index, index, 16);
        const int8_t *tables0 = library + table_offset(selectors, 2 * row, 6); // T_a, T_b
        const int8_t *tables1 = library + table_offset(selectors, 2 * row + 1, 6);
        w[row][0] =
            svsel(LOWER_HALF, svtbl(svld1(ALL, tables0), index), svtbl(svld1(ALL, tables0 + 32), swapped));
        w[row][1] =
            svsel(LOWER_HALF, svtbl(svld1(ALL, tables1), swapped), svtbl(svld1(ALL, tables1 + 32), index));
    }
}

LUTRA_INLINE void cb_row_pair(int cb, struct lutra_weights chunk, int pair, int8x32 w[2][2]) {
    uint32_t selectors;
    memcpy(&selectors, chunk.strips + 4 * pair, 4);
    const uint8_t *codes = chunk.strips + 2 * LUTRA_ROWS;
    const int8_t *library = chunk.library;
    if (cb == 2) {
        cb2_row_pair(codes + 32 * pair, library, selectors, w);
    } else if (cb == 3) {
        cb3_row_pair(codes + 48 * pair, library, selectors, w);
    } else if (cb == 5) {
        cb5_row_pair(codes + 64 * pair, chunk.second + 16 * pair, library, selectors, w);
    } else if (cb == 6) {
        cb6_row_pair(codes + 64 * pair, chunk.second + 32 * pair, library, selectors, w);
    } else if (cb == 25) {
        cb25_row_pair(codes + 80 * (pair / 2), library, pair, selectors, w);
    } else {
        cb4_row_pair(codes + 64 * pair, library, selectors, w);
    }
}

// A strip-super-block, decoded: the operand of SMMLA, 2 rows x 8 weights in 16 bytes.
struct panel {
    int8_t entry[256 / LUTRA_GROUP][LUTRA_ROWS / 2][4][16]; // [group][row pair][step of 8 weights][row, k]
    float d[LUTRA_ROWS / 2][4];                             // [row pair]: d0 d1 d0 d1
};

LUTRA_INLINE void decode(int cb, int sb, struct lutra_weights block, struct panel *panel) {
    const float32x4_t d0 = load_d(block.strips), d1 = load_d(block.strips + 8);
    vst1q_f32(panel->d[0], vcombine_f32(vget_low_f32(d0), vget_low_f32(d0)));
    vst1q_f32(panel->d[1], vcombine_f32(vget_high_f32(d0), vget_high_f32(d0)));
    vst1q_f32(panel->d[2], vcombine_f32(vget_low_f32(d1), vget_low_f32(d1)));
    vst1q_f32(panel->d[3], vcombine_f32(vget_high_f32(d1), vget_high_f32(d1)));
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const struct lutra_weights chunk = cb_chunk(cb, block, c);
#pragma GCC unroll 4
        for (int pair = 0; pair < LUTRA_ROWS / 2; pair++) {
            int8x32 w[2][2];
            cb_row_pair(cb, chunk, pair, w);
            for (int g = 0; g < 2; g++) { // interleaves the rows by 8 weights
                const svint64_t even = svreinterpret_s64_s8(w[0][g]), odd = svreinterpret_s64_s8(w[1][g]);
                svst2(ALL, (int64_t *)panel->entry[2 * c + g][pair], svcreate2(even, odd));
            }
        }
    }
}

// 1.5 * 2^23 and its bits. An int32 sum that starts at the bits is, read as a float, 1.5 * 2^23 + isum:
// exact, because |isum| <= 256 * 127 * 127 < 2^22. A subtraction is cheaper than a conversion.
#define START 12582912.0f
#define START_BITS 0x4b400000

#endif
