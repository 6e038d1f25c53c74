// What the AVX-512 kernels share: the table lookups of a pair of rows. `cb` (2, 3 or 4) and `sb` are
// constants at every call, so each kernel compiles to straight code for its type.
#ifndef LUTRA_AVX512_CB_AVX512_H
#define LUTRA_AVX512_CB_AVX512_H

#include "../avx2/cb_avx2.h" // sizes of chunks and blocks, loads, load_d

#include <string.h>

LUTRA_INLINE __m512i load512(const void *p) {
    return _mm512_loadu_si512(p);
}

LUTRA_INLINE __m512i join256(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// The 64 entries of rows 2 * pair and 2 * pair + 1 of a chunk. `flip` is xored to every entry: 0, or
// 0x80 for entry + 128 as an unsigned byte. Lanes, as ranges of k in the chunk:
//
//                       row 2 * pair          row 2 * pair + 1
//     CB2        w[0]    0..15 | 16..31    |   0..15 | 16..31
//                w[1]   32..47 | 48..63    |  32..47 | 48..63
//     CB3, CB4   w[0]    0..15 | 32..47    |   0..15 | 32..47
//                w[1]   16..31 | 48..63    |  16..31 | 48..63

// A selector's two tables, T_a and T_b, lie side by side; both have the codes of their row as indices.
LUTRA_INLINE void cb2_tables(const uint8_t *selector, const int8_t *library, __m512i table[2]) {
    table[0] =
        join256(load256(library + 32 * (size_t)selector[0]), load256(library + 32 * (size_t)selector[2]));
    table[1] =
        join256(load256(library + 32 * (size_t)selector[1]), load256(library + 32 * (size_t)selector[3]));
}

LUTRA_INLINE __m512i cb2_nibbles(const uint8_t *codes) {
    const __m512i rows = _mm512_castsi256_si512(load256(codes));
    return _mm512_shuffle_i64x2(rows, rows, 0x50); // lanes 0 0 1 1
}

// Four tables of 8 entries, expanded so that a nibble of vector i works as the index: bit i is
// ignored. The fourth lane has the donated bits of all three vectors; its bit 3 is clear.
LUTRA_INLINE __m512i cb3_tables(const uint8_t *selector, const int8_t *library) {
    // clang-format off
    static const uint8_t expand[64] = {
        0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7,
        8, 9, 8, 9, 10, 11, 10, 11, 12, 13, 12, 13, 14, 15, 14, 15,
        16, 17, 18, 19, 16, 17, 18, 19, 20, 21, 22, 23, 20, 21, 22, 23,
        24, 25, 26, 27, 28, 29, 30, 31, 24, 25, 26, 27, 28, 29, 30, 31,
    };
    // clang-format on
    uint64_t t[4];
    for (int i = 0; i < 4; i++) {
        memcpy(&t[i], library + 8 * (size_t)selector[i], 8);
    }
    const __m256i tables = _mm256_setr_epi64x((int64_t)t[0], (int64_t)t[1], (int64_t)t[2], (int64_t)t[3]);
    return _mm512_permutexvar_epi8(load512(expand), _mm512_castsi256_si512(tables));
}

LUTRA_INLINE __m512i cb3_nibbles(const uint8_t *codes) {
    const __m128i v0 = load128(codes), v1 = load128(codes + 16), v2 = load128(codes + 32);
    const __m128i v01 =
        _mm_or_si128(_mm_and_si128(v0, _mm_set1_epi8(0x11)), _mm_and_si128(v1, _mm_set1_epi8(0x22)));
    const __m128i donated = _mm_or_si128(v01, _mm_and_si128(v2, _mm_set1_epi8(0x44)));
    return join256(load256(codes), _mm256_set_m128i(donated, v2));
}

LUTRA_INLINE __m512i cb4_tables(const uint8_t *selector, const int8_t *library) {
    __m128i t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = load128(library + 16 * (size_t)selector[i]);
    }
    return join256(_mm256_set_m128i(t[1], t[0]), _mm256_set_m128i(t[3], t[2]));
}

LUTRA_INLINE void cb_rows(int cb, const uint8_t *chunk, const int8_t *library, int pair, uint8_t flip,
                          __m512i w[2]) {
    const uint8_t *selector = chunk + 4 * pair;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS;
    __m512i table[2], nibbles;
    if (cb == 2) {
        cb2_tables(selector, library, table);
        nibbles = cb2_nibbles(codes + 32 * pair);
    } else if (cb == 3) {
        table[0] = table[1] = cb3_tables(selector, library);
        nibbles = cb3_nibbles(codes + 48 * pair);
    } else {
        table[0] = table[1] = cb4_tables(selector, library);
        nibbles = load512(codes + 64 * pair);
    }
    const __m512i mask = _mm512_set1_epi8(15), flips = _mm512_set1_epi8((char)flip);
    w[0] = _mm512_shuffle_epi8(_mm512_xor_si512(table[0], flips), _mm512_and_si512(nibbles, mask));
    w[1] = _mm512_shuffle_epi8(_mm512_xor_si512(table[1], flips),
                               _mm512_and_si512(_mm512_srli_epi16(nibbles, 4), mask));
}

#endif
