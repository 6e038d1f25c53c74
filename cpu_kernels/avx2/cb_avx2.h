// SPDX-License-Identifier: MIT
// What the AVX2 kernels share: the table lookups of a row.
#ifndef LUTRA_AVX2_CB_AVX2_H
#define LUTRA_AVX2_CB_AVX2_H

#include "../common.h"

#include <immintrin.h>
#include <string.h>

LUTRA_INLINE __m128i load128(const void *p) {
    return _mm_loadu_si128((const __m128i *)p);
}

LUTRA_INLINE __m256i load256(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

LUTRA_INLINE __m256i load_twice(const void *p) {
    return _mm256_broadcastsi128_si256(load128(p));
}

// Two vectors of 16 bytes, as the lower and the upper half.
LUTRA_INLINE __m256i load_halves(const void *low, const void *high) {
    return _mm256_set_m128i(load128(high), load128(low));
}

// The entries of 32 codes of a row: low nibbles -> w[0], high nibbles -> w[1].
LUTRA_INLINE void lookup(__m256i low_tables, __m256i high_tables, __m256i nibbles, __m256i w[2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    w[0] = _mm256_shuffle_epi8(low_tables, _mm256_and_si256(nibbles, mask));
    w[1] = _mm256_shuffle_epi8(high_tables, _mm256_and_si256(_mm256_srli_epi16(nibbles, 4), mask));
}

// A selector's two tables, T_a and T_b, lie side by side; both have the codes of their row as indices.
LUTRA_INLINE void cb2_row(const uint8_t *chunk, const int8_t *library, int row, __m256i flips, __m256i w[2]) {
    const uint8_t *selector = chunk + 2 * row;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 16 * row;
    const __m256i low = load256(library + 32 * (size_t)selector[0]);
    const __m256i high = load256(library + 32 * (size_t)selector[1]);
    lookup(_mm256_xor_si256(low, flips), _mm256_xor_si256(high, flips), load_twice(codes), w);
}

// As CB2, but T_a and T_b have 32 entries each: both halves are looked up, and bit 4 of the code decides.
LUTRA_INLINE void cb25_row(const uint8_t *chunk, const int8_t *library, int row, __m256i flips,
                           __m256i w[2]) {
    const uint8_t *selector = chunk + 2 * row;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 80 * (row / 4);
    const int8_t *t0 = library + 64 * (size_t)selector[0], *t1 = library + 64 * (size_t)selector[1];
    const __m256i nibbles = load_twice(codes + 16 * (row % 4)), bits = load_twice(codes + 64);
    __m256i first[2], second[2];
    lookup(load_halves(t0, t0 + 32), load_halves(t1, t1 + 32), nibbles, first);
    lookup(load_halves(t0 + 16, t0 + 48), load_halves(t1 + 16, t1 + 48), nibbles, second);
    for (int g = 0; g < 2; g++) {
        const __m256i top = _mm256_slli_epi16(bits, 7 - (2 * (row % 4) + g));
        w[g] = _mm256_xor_si256(_mm256_blendv_epi8(first[g], second[g], top), flips);
    }
}

LUTRA_INLINE void cb4_row(const uint8_t *chunk, const int8_t *library, int row, __m256i flips, __m256i w[2]) {
    const uint8_t *selector = chunk + 2 * row;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 32 * row;
    const __m256i tables = _mm256_xor_si256(
        load_halves(library + 16 * (size_t)selector[0], library + 16 * (size_t)selector[1]), flips);
    lookup(tables, tables, load256(codes), w);
}

// CB5 adds to w, the entries of CB4, those of one bit per weight. The bits of a row are a nibble: group 0's
// lower and upper half, then group 1's. The tables of two entries, expanded, take it as it is.
LUTRA_INLINE void add_cb5_row(const uint8_t *codes, const int8_t *library, const uint8_t *selector, int row,
                              __m256i w[2]) {
    int32_t two[2]; // entries are the upper halves; the lower one of table 0 is the first layer's library
    memcpy(&two[0], library + 2 * (ptrdiff_t)selector[0] - 2, 4);
    memcpy(&two[1], library + 2 * (ptrdiff_t)selector[1] - 2, 4);
    const __m256i tables = _mm256_blend_epi32(_mm256_set1_epi32(two[0]), _mm256_set1_epi32(two[1]), 0xf0);
    const __m256i v = load_twice(codes + 16 * (row / 2));
    const __m256i index = _mm256_and_si256(row % 2 ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15));
    // clang-format off
    const __m256i lower = _mm256_shuffle_epi8(tables, _mm256_setr_epi8( // bit 0 | bit 2
        2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3,
        2, 2, 2, 2, 3, 3, 3, 3, 2, 2, 2, 2, 3, 3, 3, 3));
    const __m256i upper = _mm256_shuffle_epi8(tables, _mm256_setr_epi8( // bit 1 | bit 3
        2, 2, 3, 3, 2, 2, 3, 3, 2, 2, 3, 3, 2, 2, 3, 3,
        2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
    // clang-format on
    w[0] = _mm256_add_epi8(w[0], _mm256_shuffle_epi8(lower, index));
    w[1] = _mm256_add_epi8(w[1], _mm256_shuffle_epi8(upper, index));
}

// CB6 adds those of pairs, with codes as CB2's: T_a is for the lower half of a group, T_b for the upper one.
LUTRA_INLINE void add_cb6_row(const uint8_t *codes, const int8_t *library, const uint8_t *selector, int row,
                              __m256i w[2]) {
    const int8_t *t0 = library + 32 * (size_t)selector[0], *t1 = library + 32 * (size_t)selector[1];
    const __m256i shifts = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4); // low nibbles | high nibbles
    const __m256i nibbles = _mm256_srlv_epi32(load_twice(codes + 16 * row), shifts);
    const __m256i index = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
    w[0] = _mm256_add_epi8(w[0], _mm256_shuffle_epi8(load_halves(t0, t1), index));
    w[1] = _mm256_add_epi8(w[1], _mm256_shuffle_epi8(load_halves(t0 + 16, t1 + 16), index));
}

// A table of 8 entries in all four quarters.
LUTRA_INLINE __m256i load_cb3_table(const int8_t *library, uint8_t selector) {
    return _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i *)(library + 8 * (size_t)selector)));
}

// The byte in the upper half, 0 in the lower.
LUTRA_INLINE __m256i upper(char byte) {
    return _mm256_set_m128i(_mm_set1_epi8(byte), _mm_setzero_si128());
}

// Tables of 8 entries, expanded so that a nibble of vector i works as the index: bit i is ignored.
// The donated bits of all three vectors ignore bit 3.
LUTRA_INLINE void cb3_row(const uint8_t *chunk, const int8_t *library, int row, __m256i flips, __m256i w[2]) {
    const uint8_t *selector = chunk + 2 * row;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 48 * (row / 2);
    __m256i tables =
        _mm256_blend_epi32(load_cb3_table(library, selector[0]), load_cb3_table(library, selector[1]), 0xf0);
    tables = _mm256_xor_si256(tables, flips);
    __m256i nibbles;
    // clang-format off
    if (row % 2 == 0) { // V0 | V1
        tables = _mm256_shuffle_epi8(tables, _mm256_setr_epi8(
            0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7,
            0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7));
        nibbles = load256(codes);
    } else { // V2 | donated; the lower halves of the last two loads do not matter
        tables = _mm256_shuffle_epi8(tables, _mm256_setr_epi8(
            0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7,
            0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7));
        const __m256i v2 = load_twice(codes + 32);
        const __m256i v1 = load256(codes), v0 = load256(codes - 16);
        const __m256i v01 = _mm256_or_si256(_mm256_and_si256(v0, upper(0x11)), _mm256_and_si256(v1, upper(0x22)));
        nibbles = _mm256_or_si256(_mm256_and_si256(v2, _mm256_set_m128i(_mm_set1_epi8(0x44), _mm_set1_epi8(-1))), v01);
    }
    // clang-format on
    lookup(tables, tables, nibbles, w);
}

// Whether a code stands for a pair of weights, which makes another order of lanes.
LUTRA_INLINE bool cb_pairs(int cb) {
    return cb == 2 || cb == 25;
}

// The 64 entries of one row of a chunk. `flip` is xored to every entry: 0, or 0x80 for entry + 128 as an
// unsigned byte. Lanes, as ranges of k in the chunk:
//
//     pairs       w[0] =  0..15 | 16..31     w[1] = 32..47 | 48..63
//     others      w[0] =  0..15 | 32..47     w[1] = 16..31 | 48..63
LUTRA_INLINE void cb_row(int cb, struct lutra_weights chunk, int row, uint8_t flip, __m256i w[2]) {
    const __m256i flips = _mm256_set1_epi8((char)flip);
    const uint8_t *selector = chunk.strips + 2 * row;
    const int8_t *second = chunk.library + LUTRA_TABLES * cb_table_bytes(cb);
    if (cb == 2) {
        cb2_row(chunk.strips, chunk.library, row, flips, w);
    } else if (cb == 25) {
        cb25_row(chunk.strips, chunk.library, row, flips, w);
    } else if (cb == 3) {
        cb3_row(chunk.strips, chunk.library, row, flips, w);
    } else {
        cb4_row(chunk.strips, chunk.library, row, flips, w);
    }
    if (cb == 5) {
        add_cb5_row(chunk.second, second, selector, row, w);
    } else if (cb == 6) {
        add_cb6_row(chunk.second, second, selector, row, w);
    }
}

// 32 activations of a super-block in the lane order of cb_row: those of w[i % 2] of chunk i / 2.
LUTRA_INLINE __m256i x_of(int cb, const int8_t *q, int i) {
    if (cb_pairs(cb)) {
        return load256(q + 32 * i);
    }
    const int8_t *half = q + 64 * (i / 2) + 16 * (i % 2);
    return load_halves(half, half + 32);
}

// 4 bytes in all lanes.
LUTRA_INLINE __m256i x_broadcast(const __m256i *x, int step) {
    return _mm256_castps_si256(_mm256_broadcast_ss((const float *)x + step));
}

// The sum of the 8 lanes of each a[i] -> lane i.
LUTRA_INLINE __m256i sum_lanes(const __m256i a[LUTRA_ROWS]) {
    __m256i two[4], four[2]; // of the sums of 2 and of 4 lanes
    for (int i = 0; i < 4; i++) {
        two[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]),
                                  _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]));
    }
    for (int i = 0; i < 2; i++) {
        four[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(two[2 * i], two[2 * i + 1]),
                                   _mm256_unpackhi_epi64(two[2 * i], two[2 * i + 1]));
    }
    return _mm256_add_epi32(_mm256_permute2x128_si256(four[0], four[1], 0x21),
                            _mm256_blend_epi32(four[0], four[1], 0xf0));
}

LUTRA_INLINE __m256 load_d(const uint8_t *block) {
    return _mm256_cvtph_ps(load128(block));
}

#endif
