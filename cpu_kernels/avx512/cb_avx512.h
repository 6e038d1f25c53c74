// SPDX-License-Identifier: MIT
// What the AVX-512 kernels share: the table lookups.
//
// A group of a row, 32 weights, becomes one 256-bit vector in order of k by one PSHUFB. Nothing is put
// together from parts, which would cost shuffles: tables and codes are loaded with a broadcast, and
// GF2P8AFFINEQB picks the bits of the indices, with one bit matrix per 64 bits.
#ifndef LUTRA_AVX512_CB_AVX512_H
#define LUTRA_AVX512_CB_AVX512_H

#include "../avx2/cb_avx2.h" // loads, load_d, sum_lanes

#include <string.h>

// The 8x8 bit matrix that makes bits b0, b1, b2 and b3 of a byte an index; row i of the product is
// byte 7 - i of the matrix.
#define INDEX3(b0, b1, b2) ((int64_t)(1ull << (56 + b0) | 1ull << (48 + b1) | 1ull << (40 + b2)))
#define INDEX4(b0, b1, b2, b3) (INDEX3(b0, b1, b2) | (int64_t)(1ull << (32 + b3)))

// Bytes `v` twice: indices by matrix `low` in the lower half, by `high` in the upper half.
LUTRA_INLINE __m256i indices(__m256i v, int64_t low, int64_t high) {
    return _mm256_gf2p8affine_epi64_epi8(v, _mm256_setr_epi64x(low, low, high, high), 0);
}

// The same for a whole row: `low` for the lower half, group 0, and `high` for the upper one.
LUTRA_INLINE __m512i two_matrices(int64_t low, int64_t high) {
    return _mm512_setr_epi64(low, low, low, low, high, high, high, high);
}

#define SELECT 0xca // VPTERNLOGD: first ? second : third
#define LOW_NIBBLE INDEX4(0, 1, 2, 3)
#define HIGH_NIBBLE INDEX4(4, 5, 6, 7)

// Group i of two rows: low nibbles are of group 0, high nibbles of group 1, for both vectors of a table,
// T_a | T_b.
LUTRA_INLINE __m256i cb2_group(const uint8_t *selector, const uint8_t *codes, const uint8_t *library, int i) {
    const __m256i v = load_twice(codes + 16 * (i / 2));
    const __m256i index =
        i % 2 == 0 ? _mm256_and_si256(v, _mm256_set1_epi8(15)) : indices(v, HIGH_NIBBLE, HIGH_NIBBLE);
    return _mm256_shuffle_epi8(load256(library + 32 * (size_t)selector[i]), index);
}

LUTRA_INLINE void cb2_rows(const uint8_t *selector, const uint8_t *codes, const uint8_t *library,
                           __m256i w[4]) {
    for (int i = 0; i < 4; i++) {
        w[i] = cb2_group(selector, codes, library, i);
    }
}

// Vector i donates bit i of its nibbles to the fourth, so its own indices skip that bit.
LUTRA_INLINE void cb3_rows(const uint8_t *selector, const uint8_t *codes, const uint8_t *library,
                           __m256i w[4]) {
    const __m256i v0 = load_twice(codes), v1 = load_twice(codes + 16), v2 = load_twice(codes + 32);
    const __m256i v01 = _mm256_ternarylogic_epi32(_mm256_set1_epi8(0x11), v0, v1, SELECT);
    const __m256i donated = _mm256_ternarylogic_epi32(_mm256_set1_epi8(0x44), v2, v01, SELECT);
    const __m256i index[4] = {
        indices(v0, INDEX3(1, 2, 3), INDEX3(5, 6, 7)),
        indices(v1, INDEX3(0, 2, 3), INDEX3(4, 6, 7)),
        indices(v2, INDEX3(0, 1, 3), INDEX3(4, 5, 7)),
        indices(donated, INDEX3(0, 1, 2), INDEX3(4, 5, 6)),
    };
    for (int i = 0; i < 4; i++) {
        int64_t table;
        memcpy(&table, library + 8 * (size_t)selector[i], sizeof(table));
        w[i] = _mm256_shuffle_epi8(_mm256_set1_epi64x(table), index[i]);
    }
}

LUTRA_INLINE void cb4_rows(const uint8_t *selector, const uint8_t *codes, const uint8_t *library,
                           __m256i w[4]) {
    for (int i = 0; i < 4; i++) {
        const __m256i index = indices(load_twice(codes + 16 * i), LOW_NIBBLE, HIGH_NIBBLE);
        w[i] = _mm256_shuffle_epi8(load_twice(library + 16 * (size_t)selector[i]), index);
    }
}

// As CB2, but T_a and T_b have 32 entries each, 64 bytes together, which one VPERMB looks up: bits 0 to 3 of
// an index are a nibble, bit 4 is bit `bit` of the vector `top` for w[0], and bit 5 chooses T_b.
LUTRA_INLINE void cb25_rows(const uint8_t *selector, const uint8_t *codes, const uint8_t *top, int bit,
                            const uint8_t *library, __m256i w[4]) {
    const __m512i second = _mm512_maskz_set1_epi64(0xcc, 0x2020202020202020);
    for (int row = 0; row < 2; row++, bit += 2, selector += 2) {
        const __m512i nibble = _mm512_gf2p8affine_epi64_epi8(
            _mm512_broadcast_i32x4(load128(codes + 16 * row)), two_matrices(LOW_NIBBLE, HIGH_NIBBLE), 0);
        const __m512i fifth = _mm512_gf2p8affine_epi64_epi8(
            _mm512_broadcast_i32x4(load128(top)), two_matrices(1ll << (24 + bit), 2ll << (24 + bit)), 0);
        const __m512i index = _mm512_ternarylogic_epi32(nibble, fifth, second, 0xfe); // all ored
        const __m512i *tables = (const __m512i *)library;
        const __m512i both = _mm512_mask_permutexvar_epi8(
            _mm512_permutexvar_epi8(index, _mm512_loadu_si512(tables + selector[0])), 0xffffffff00000000,
            index, _mm512_loadu_si512(tables + selector[1]));
        w[2 * row] = _mm512_castsi512_si256(both);
        w[2 * row + 1] = _mm512_extracti64x4_epi64(both, 1);
    }
}

// CB5 adds to w, the entries of CB4, those of one bit per weight: 2 i and 2 i + 1 for the halves of w[i].
LUTRA_INLINE void add_cb5_rows(const uint8_t *selector, const uint8_t *codes, const uint8_t *library,
                               __m256i w[4]) {
    for (int i = 0; i < 4; i++) {
        int32_t two; // entries are the upper half; the lower one of table 0 is the first layer's library
        memcpy(&two, library + 2 * (ptrdiff_t)selector[i] - 2, sizeof(two));
        const int64_t lower = (int64_t)(1ull << (56 + 2 * i)), upper = (int64_t)(2ull << (56 + 2 * i));
        const __m256i matrix = _mm256_setr_epi64x(lower, lower, upper, upper);
        const __m256i index = _mm256_gf2p8affine_epi64_epi8(load_twice(codes), matrix, 2); // 2 + the bit
        w[i] = _mm256_add_epi8(w[i], _mm256_shuffle_epi8(_mm256_set1_epi32(two), index));
    }
}

// CB6 adds those of pairs, with codes as CB2's.
LUTRA_INLINE void add_cb6_rows(const uint8_t *selector, const uint8_t *codes, const uint8_t *library,
                               __m256i w[4]) {
    for (int i = 0; i < 4; i++) {
        w[i] = _mm256_add_epi8(w[i], cb2_group(selector, codes, library, i));
    }
}

// The entries of rows 2 * pair and 2 * pair + 1 of a chunk: w[2 * r + g] = group g of row r.
LUTRA_INLINE void cb_rows(int cb, struct lutra_weights chunk, int pair, __m256i w[4]) {
    const uint8_t *codes = chunk.strips + 2 * LUTRA_ROWS;
    const uint8_t *selector = chunk.strips + 4 * pair;
    const uint8_t *library = (const uint8_t *)chunk.library;
    const uint8_t *second = library + LUTRA_TABLES * cb_table_bytes(cb);
    if (cb == 2) {
        cb2_rows(selector, codes + 32 * pair, library, w);
    } else if (cb == 25) {
        codes += 80 * (pair / 2);
        cb25_rows(selector, codes + 32 * (pair % 2), codes + 64, 4 * (pair % 2), library, w);
    } else if (cb == 3) {
        cb3_rows(selector, codes + 48 * pair, library, w);
    } else {
        cb4_rows(selector, codes + 64 * pair, library, w);
    }
    if (cb == 5) {
        add_cb5_rows(selector, chunk.second + 16 * pair, second, w);
    } else if (cb == 6) {
        add_cb6_rows(selector, chunk.second + 32 * pair, second, w);
    }
}

#endif
