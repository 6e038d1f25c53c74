// SPDX-License-Identifier: MIT
// Activations to int8, for both super-blocks; `sb` is a constant at every call.
#ifndef LUTRA_AVX2_QUANTIZE_AVX2_H
#define LUTRA_AVX2_QUANTIZE_AVX2_H

#include "../common.h"

#include <immintrin.h>
#include <math.h>

// max |x| of sb floats as bits: for non-negative floats the order of the bits is the order of the
// values, with infinity and NaN above everything finite.
static inline uint32_t amax_bits(int sb, const float *x) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i max = _mm256_setzero_si256();
    for (int i = 0; i < sb; i += 8) {
        const __m256i bits = _mm256_loadu_si256((const __m256i *)(x + i));
        max = _mm256_max_epu32(max, _mm256_and_si256(bits, magnitude));
    }
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

static inline void quantize(int sb, int64_t k, const float *x, int8_t *q, float *d) {
    // Packing two registers twice leaves 4-byte units in the order 0 2 4 6 1 3 5 7 (of 8 weights each
    // lane pair); this puts them back.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t s = 0; s < k / sb; s++, x += sb, q += sb) {
        const float amax = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)amax_bits(sb, x))));
        const bool finite = amax < INFINITY;
        const bool zero = !finite || amax < 1e-30f;
        const __m256 scale = _mm256_set1_ps(zero ? 0 : 127 / amax);
        for (int i = 0; i < sb; i += 32) {
            __m256i v[4]; // rounds half to even, the default mode
            for (int j = 0; j < 4; j++) {
                v[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), scale));
            }
            const __m256i bytes =
                _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
            const __m256i plain = _mm256_permutevar8x32_epi32(bytes, order);
            _mm256_storeu_si256((__m256i *)(q + i), zero ? _mm256_setzero_si256() : plain);
        }
        d[s] = !finite ? NAN : zero ? 0 : amax / 127;
    }
}

#endif
