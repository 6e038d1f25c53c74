// SPDX-License-Identifier: MIT
// One row of a strip to floats.
#ifndef LUTRA_AVX2_DEQUANTIZE_AVX2_H
#define LUTRA_AVX2_DEQUANTIZE_AVX2_H

#include "cb_avx2.h"

LUTRA_INLINE void dequantize(int cb, int sb, int64_t k, struct lutra_weights block, int row, float *y) {
    for (int64_t s = 0; s < k / sb; s++, block = cb_block(cb, sb, block, 1)) {
        float d[LUTRA_ROWS];
        _mm256_storeu_ps(d, load_d(block.strips));
        const __m256 scale = _mm256_set1_ps(d[row]);
        for (int c = 0; c < sb / LUTRA_CHUNK; c++, y += LUTRA_CHUNK) {
            __m256i w[2];
            cb_row(cb, cb_chunk(cb, block, c), row, 0, w);
            int8_t entries[LUTRA_CHUNK];
            for (int quarter = 0; quarter < 4; quarter++) { // from the lanes of cb_row
                const __m256i v = w[cb_pairs(cb) ? quarter / 2 : quarter % 2];
                const bool upper_half = cb_pairs(cb) ? quarter % 2 : quarter / 2;
                const __m128i lane = upper_half ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v);
                _mm_storeu_si128((__m128i *)(entries + 16 * quarter), lane);
            }
            for (int i = 0; i < LUTRA_CHUNK; i += 8) {
                const __m256i eight = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(entries + i)));
                _mm256_storeu_ps(y + i, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(eight)));
            }
        }
    }
}

#endif
