// SPDX-License-Identifier: MIT
// How entries meet activations on AVX2: VPMADDUBSW, whose first operand is unsigned. With s = -1 where
// q < 0, else 0, and w ^ s = -w - 1 or w:
//
//     w * q = |q| * (w ^ s) + (q < 0 ? |q| : 0)
//
// The last term does not depend on w: its sum over a super-block, the correction, is taken once. No
// pair of products exceeds 2 * 127 * 128 < 2^15.
#ifndef LUTRA_AVX2_PRODUCT_AVX2_H
#define LUTRA_AVX2_PRODUCT_AVX2_H

#include "cb_avx2.h"

enum {
    FLIP = 0,     // entries are needed as they are
    X_PER_32 = 2, // vectors of prepared activations per 32
};

// A super-block of one column, in the lane order of cb_row: all |q|, all s, the correction in 8 lanes.
LUTRA_INLINE int x_vectors(int sb) {
    return X_PER_32 * sb / 32 + 1;
}

LUTRA_INLINE void load_x(int cb, int sb, const int8_t *q, __m256i *x) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i sum = zero;
    for (int i = 0; i < sb / 32; i++) {
        x[i] = x_of(cb, q, i);
        x[sb / 32 + i] = _mm256_cmpgt_epi8(zero, x[i]);
        x[i] = _mm256_abs_epi8(x[i]);
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_and_si256(x[i], x[sb / 32 + i]), zero));
    }
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    x[2 * sb / 32] = _mm256_broadcastd_epi32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

struct x {
    __m256i magnitude, s;
};

LUTRA_INLINE struct x x_vector(int sb, const __m256i *x, int i) { // 32 activations
    return (struct x){x[i], x[sb / 32 + i]};
}

LUTRA_INLINE struct x x_step(int sb, const __m256i *x, int step) { // 4 activations, in all lanes
    return (struct x){x_broadcast(x, step), x_broadcast(x + sb / 32, step)};
}

// sum + four products per int32 lane.
LUTRA_INLINE __m256i dot(__m256i sum, __m256i w, struct x x) {
    const __m256i pairs = _mm256_maddubs_epi16(x.magnitude, _mm256_xor_si256(w, x.s));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#endif
