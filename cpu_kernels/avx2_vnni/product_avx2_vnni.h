// SPDX-License-Identifier: MIT
// How entries meet activations with AVX-VNNI: VPDPBUSD, unsigned by signed bytes. The entries become
// unsigned, entry + 128, by flipping the tables; -128 * sum of q, the correction, is taken once.
#ifndef LUTRA_AVX2_VNNI_PRODUCT_AVX2_VNNI_H
#define LUTRA_AVX2_VNNI_PRODUCT_AVX2_VNNI_H

#include "../avx2/cb_avx2.h"

enum {
    FLIP = 0x80,  // entry + 128
    X_PER_32 = 1, // vectors of prepared activations per 32
};

// Tests on AVX-512 machines compile the same files for the EVEX encoding (option LUTRA_VNNI_EVEX).
LUTRA_INLINE __m256i dpbusd(__m256i sum, __m256i bytes, __m256i signed_bytes) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, bytes, signed_bytes);
#else
    return _mm256_dpbusd_epi32(sum, bytes, signed_bytes);
#endif
}

// A super-block of one column, in the lane order of cb_row: all q, the correction in 8 lanes.
LUTRA_INLINE int x_vectors(int sb) {
    return X_PER_32 * sb / 32 + 1;
}

LUTRA_INLINE void load_x(int cb, int sb, const int8_t *q, __m256i *x) {
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < sb / 32; i++) {
        x[i] = x_of(cb, q, i);
        sum = dpbusd(sum, _mm256_set1_epi8((char)128), x[i]);
    }
    __m128i all = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    all = _mm_add_epi32(all, _mm_unpackhi_epi64(all, all));
    all = _mm_add_epi32(all, _mm_shuffle_epi32(all, 0x55));
    x[sb / 32] = _mm256_broadcastd_epi32(_mm_sub_epi32(_mm_setzero_si128(), all));
}

struct x {
    __m256i q;
};

LUTRA_INLINE struct x x_vector(int sb, const __m256i *x, int i) { // 32 activations
    (void)sb;
    return (struct x){x[i]};
}

LUTRA_INLINE struct x x_step(int sb, const __m256i *x, int step) { // 4 activations, in all lanes
    (void)sb;
    return (struct x){x_broadcast(x, step)};
}

// sum + four products per int32 lane.
LUTRA_INLINE __m256i dot(__m256i sum, __m256i w, struct x x) {
    return dpbusd(sum, w, x.q);
}

#endif
