// gemv: 8 rows x 1 column, one vector of int32 sums per pair of rows.
//
// VPDPBUSD multiplies unsigned by signed bytes. The entries become unsigned, entry + 128, by flipping
// the tables; 128 * sum of q, the same for every row, is summed up beside them and taken off.
#ifndef LUTRA_AVX512_GEMV_AVX512_H
#define LUTRA_AVX512_GEMV_AVX512_H

#include "cb_avx512.h"

enum {
    PAIRS = LUTRA_ROWS / 2,
    PREFETCH = 2048, // bytes ahead, across the page ends where the hardware stops
};

// 64 activations in the lane order of cb_rows, for both rows of a pair.
LUTRA_INLINE void load_x(int cb, const int8_t *q, __m512i x[2]) {
    if (cb == 2) {
        x[0] = _mm512_broadcast_i64x4(load256(q));
        x[1] = _mm512_broadcast_i64x4(load256(q + 32));
    } else {
        const __m512i plain = load512(q);
        x[0] = _mm512_shuffle_i64x2(plain, plain, 0x88); // lanes 0 2 0 2
        x[1] = _mm512_shuffle_i64x2(plain, plain, 0xdd); // lanes 1 3 1 3
    }
}

// The sums of the lower and the upper 8 lanes of each a[i] -> lanes 2 i and 2 i + 1.
LUTRA_INLINE __m256i sum_pairs(const __m512i a[PAIRS]) {
    const __m512i a01 =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const __m512i a23 =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    const __m512i quarter =
        _mm512_add_epi32(_mm512_unpacklo_epi64(a01, a23), _mm512_unpackhi_epi64(a01, a23));
    // Even rows in the lanes 0 and 1 of 128 bits, odd rows in 2 and 3.
    const __m512i even_odd = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    const __m512i half = _mm512_permutexvar_epi32(even_odd, quarter);
    return _mm256_add_epi32(_mm512_castsi512_si256(half), _mm512_extracti64x4_epi64(half, 1));
}

LUTRA_INLINE void gemv_8x1_avx512(int cb, int sb, int64_t k, int64_t n_strips, const uint8_t *block,
                                  const int8_t *library, const int8_t *q, const float *d, float *y) {
    const __m512i bias = _mm512_set1_epi8((char)128);
    for (int64_t strip = 0; strip < n_strips; strip++) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t s = 0; s < k / sb; s++) {
            __m512i acc[PAIRS], excess = _mm512_setzero_si512();
            for (int i = 0; i < PAIRS; i++) {
                acc[i] = _mm512_setzero_si512();
            }
            for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
                const uint8_t *chunk = block + 2 * LUTRA_ROWS + c * cb_chunk_bytes(cb);
                for (int i = 0; i < cb_chunk_bytes(cb); i += 64) {
                    _mm_prefetch((const char *)chunk + PREFETCH + i, _MM_HINT_T0);
                }
                __m512i x[2];
                load_x(cb, q + s * sb + c * LUTRA_CHUNK, x);
                excess = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(excess, bias, x[0]), bias, x[1]);
#pragma GCC unroll 4
                for (int i = 0; i < PAIRS; i++) {
                    __m512i w[2];
                    cb_rows(cb, chunk, library, i, 0x80, w);
                    acc[i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc[i], w[0], x[0]), w[1], x[1]);
                }
            }
            for (int i = 0; i < PAIRS; i++) {
                acc[i] = _mm512_sub_epi32(acc[i], excess);
            }
            const __m256 scale = _mm256_mul_ps(load_d(block), _mm256_set1_ps(d[s]));
            sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum_pairs(acc)), sum);
            block += cb_block_bytes(cb, sb);
        }
        _mm256_storeu_ps(y + strip * LUTRA_ROWS, sum);
    }
}

#endif
