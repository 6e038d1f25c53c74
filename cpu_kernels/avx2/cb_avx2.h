// What the AVX2 kernels share: the table lookups of a row, a gemv body and a gemm body. `cb` (2, 3 or
// 4) and `sb` are constants at every call, so each kernel compiles to straight code for its type.
#ifndef LUTRA_AVX2_CB_AVX2_H
#define LUTRA_AVX2_CB_AVX2_H

#include "../dispatch/kernels.h"

#include <immintrin.h>

#define LUTRA_INLINE static inline __attribute__((always_inline))

// Entries of one tensor type: bytes of a chunk, of a strip-super-block, of a table.
LUTRA_INLINE int64_t cb_chunk_bytes(int cb) {
    return cb == 2   ? sizeof(struct lutra_cb2_chunk)
           : cb == 3 ? sizeof(struct lutra_cb3_chunk)
                     : sizeof(struct lutra_cb4_chunk);
}

LUTRA_INLINE int64_t cb_block_bytes(int cb, int sb) {
    return 2 * LUTRA_ROWS + sb / LUTRA_CHUNK * cb_chunk_bytes(cb);
}

LUTRA_INLINE __m128i load128(const void *p) {
    return _mm_loadu_si128((const __m128i *)p);
}

LUTRA_INLINE __m256i load256(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

// Entries of 32 codes in the nibbles of 16 bytes x 2: low nibbles -> w[0], high nibbles -> w[1].
LUTRA_INLINE void lookup(__m256i low_tables, __m256i high_tables, __m256i nibbles, __m256i w[2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    w[0] = _mm256_shuffle_epi8(low_tables, _mm256_and_si256(nibbles, mask));
    w[1] = _mm256_shuffle_epi8(high_tables, _mm256_and_si256(_mm256_srli_epi16(nibbles, 4), mask));
}

// The 64 entries of one row of a chunk. Lanes, as ranges of k in the chunk:
//
//     CB2         w[0] =  0..15 | 16..31     w[1] = 32..47 | 48..63
//     CB3, CB4    w[0] =  0..15 | 32..47     w[1] = 16..31 | 48..63
LUTRA_INLINE void cb2_row(const uint8_t *chunk, const int8_t *library, int row, __m256i w[2]) {
    const uint8_t *selector = chunk + 2 * row;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 16 * row;
    lookup(load256(library + 32 * selector[0]), load256(library + 32 * selector[1]), // T_a | T_b
           _mm256_broadcastsi128_si256(load128(codes)), w);
}

LUTRA_INLINE void cb4_row(const uint8_t *chunk, const int8_t *library, int row, __m256i w[2]) {
    const uint8_t *selector = chunk + 2 * row;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 32 * row;
    const __m256i tables =
        _mm256_set_m128i(load128(library + 16 * selector[1]), load128(library + 16 * selector[0]));
    lookup(tables, tables, load256(codes), w);
}

// Tables of 8 entries, expanded so that a nibble of vector i works as the index: bit i is ignored.
LUTRA_INLINE void cb3_row(const uint8_t *chunk, const int8_t *library, int row, __m256i w[2]) {
    const uint8_t *selector = chunk + 2 * row;
    const uint8_t *codes = chunk + 2 * LUTRA_ROWS + 48 * (row / 2);
    const __m128i t0 = _mm_loadl_epi64((const __m128i *)(library + 8 * selector[0]));
    const __m128i t1 = _mm_loadl_epi64((const __m128i *)(library + 8 * selector[1]));
    __m256i tables, nibbles;
    if (row % 2 == 0) { // V0 and V1
        tables = _mm256_set_m128i(_mm_unpacklo_epi16(t1, t1), _mm_unpacklo_epi8(t0, t0));
        nibbles = load256(codes);
    } else { // V2, and the donated bits of all three, whose bit 3 is clear
        const __m128i v2 = load128(codes + 32);
        const __m128i v01 = _mm_or_si128(_mm_and_si128(load128(codes), _mm_set1_epi8(0x11)),
                                         _mm_and_si128(load128(codes + 16), _mm_set1_epi8(0x22)));
        tables = _mm256_set_m128i(t1, _mm_unpacklo_epi32(t0, t0));
        nibbles = _mm256_set_m128i(_mm_or_si128(v01, _mm_and_si128(v2, _mm_set1_epi8(0x44))), v2);
    }
    lookup(tables, tables, nibbles, w);
}

LUTRA_INLINE void cb_row(int cb, const uint8_t *chunk, const int8_t *library, int row, __m256i w[2]) {
    if (cb == 2) {
        cb2_row(chunk, library, row, w);
    } else if (cb == 3) {
        cb3_row(chunk, library, row, w);
    } else {
        cb4_row(chunk, library, row, w);
    }
}

// Between the lane order of cb_row and plain order; its own inverse.
LUTRA_INLINE void cb_reorder(int cb, __m256i v[2]) {
    if (cb != 2) {
        const __m256i low = _mm256_permute2x128_si256(v[0], v[1], 0x20);
        v[1] = _mm256_permute2x128_si256(v[0], v[1], 0x31);
        v[0] = low;
    }
}

// Four products per int32 lane. |q| * (w with the sign of q): no pair exceeds 2 * 127 * 127 < 2^15.
LUTRA_INLINE __m256i dot4(__m256i magnitude, __m256i with_sign) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, with_sign), _mm256_set1_epi16(1));
}

// The sum of the 8 lanes of each a[i] -> lane i.
LUTRA_INLINE __m256i sum_lanes(const __m256i a[8]) {
    const __m256i a0123 = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    const __m256i a4567 = _mm256_hadd_epi32(_mm256_hadd_epi32(a[4], a[5]), _mm256_hadd_epi32(a[6], a[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a0123, a4567, 0x20),
                            _mm256_permute2x128_si256(a0123, a4567, 0x31));
}

LUTRA_INLINE __m256 load_d(const uint8_t *block) {
    return _mm256_cvtph_ps(load128(block));
}

// ---- gemv: 8 rows x 1 column, one int32 accumulator vector per row ---------------------------

LUTRA_INLINE void gemv_8x1(int cb, int sb, int64_t k, int64_t n_strips, const uint8_t *block,
                           const int8_t *library, const int8_t *q, const float *d, float *y) {
    for (int64_t strip = 0; strip < n_strips; strip++) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t s = 0; s < k / sb; s++) {
            __m256i acc[LUTRA_ROWS];
            for (int row = 0; row < LUTRA_ROWS; row++) {
                acc[row] = _mm256_setzero_si256();
            }
            for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
                const uint8_t *chunk = block + 2 * LUTRA_ROWS + c * cb_chunk_bytes(cb);
                const int8_t *qc = q + s * sb + c * LUTRA_CHUNK;
                __m256i x[2] = {load256(qc), load256(qc + 32)};
                cb_reorder(cb, x);
                const __m256i magnitude[2] = {_mm256_abs_epi8(x[0]), _mm256_abs_epi8(x[1])};
#pragma GCC unroll 8
                for (int row = 0; row < LUTRA_ROWS; row++) {
                    __m256i w[2];
                    cb_row(cb, chunk, library, row, w);
                    const __m256i low = dot4(magnitude[0], _mm256_sign_epi8(w[0], x[0]));
                    const __m256i high = dot4(magnitude[1], _mm256_sign_epi8(w[1], x[1]));
                    acc[row] = _mm256_add_epi32(acc[row], _mm256_add_epi32(low, high));
                }
            }
            const __m256 scale = _mm256_mul_ps(load_d(block), _mm256_set1_ps(d[s]));
            sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum_lanes(acc)), sum);
            block += cb_block_bytes(cb, sb);
        }
        _mm256_storeu_ps(y + strip * LUTRA_ROWS, sum);
    }
}

// ---- gemm: a super-block of some strips is decoded once and meets all columns -------------------
//
// Operands are widened to int16 beforehand, so that a step is one vpmaddwd and one vpaddd. (Bytes
// would need vpsignb, vpmaddubsw, vpmaddwd and vpaddd for twice the weights: the same count, more
// registers.) Widening splits 4 bytes b0 b1 b2 b3 into the even pair (b0, b2) and the odd pair
// (b1, b3), on both sides alike.

enum {
    GEMM_COLUMNS = 4, // columns per register tile
    GEMM_STRIPS = 2,  // strips per register tile
    GEMM_PANELS = 4,  // strips decoded together: they share the widened activations
    GEMM_BLOCK = 128, // columns per decoded super-block: their q stay in L2
    GEMM_STEPS = 256 / 2,
};

// Entries of 8 rows x sb weights in steps of 2 weights: step 2 i even, 2 i + 1 odd of k = 4 i .. 4 i + 3;
// in a step 8 rows x 2 int16.
struct gemm_panel {
    __m256i w[GEMM_STEPS];
    __m256 d;
};

LUTRA_INLINE __m256i widen_even(__m256i bytes) {
    return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}

LUTRA_INLINE __m256i widen_odd(__m256i bytes) {
    return _mm256_srai_epi16(bytes, 8);
}

// Rows of 8 x 4 bytes -> vectors of 8 rows x 4 bytes (an 8 x 8 transposition of 4-byte units).
LUTRA_INLINE void transpose(const __m256i row[8], __m256i out[8]) {
    __m256i pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quad[i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
        quad[i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
        quad[i + 2] = _mm256_unpacklo_epi64(pair[i + 1], pair[i + 3]);
        quad[i + 3] = _mm256_unpackhi_epi64(pair[i + 1], pair[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x20);
        out[i + 4] = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x31);
    }
}

LUTRA_INLINE void gemm_decode(int cb, int sb, const uint8_t *block, const int8_t *library,
                              struct gemm_panel *panel) {
    panel->d = load_d(block);
    for (int c = 0; c < sb / LUTRA_CHUNK; c++) {
        const uint8_t *chunk = block + 2 * LUTRA_ROWS + c * cb_chunk_bytes(cb);
        __m256i half[2][LUTRA_ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < LUTRA_ROWS; row++) {
            __m256i w[2];
            cb_row(cb, chunk, library, row, w);
            cb_reorder(cb, w);
            half[0][row] = w[0];
            half[1][row] = w[1];
        }
        for (int h = 0; h < 2; h++) {
            __m256i bytes[8];
            transpose(half[h], bytes);
            __m256i *w = panel->w + (c * LUTRA_CHUNK + h * 32) / 2;
            for (int i = 0; i < 8; i++) {
                w[i] = widen_even(bytes[i]);
                w[8 + i] = widen_odd(bytes[i]);
            }
        }
    }
}

// The steps of one column; 8 even steps, then the 8 odd ones.
LUTRA_INLINE void gemm_widen_x(int sb, const int8_t *q, __m256i *x) {
    for (int i = 0; i < sb / 32; i++) {
        const __m256i bytes = load256(q + 32 * i);
        x[2 * i] = widen_even(bytes);
        x[2 * i + 1] = widen_odd(bytes);
    }
}

LUTRA_INLINE void gemm_store(int64_t s, __m256 d, float d_x, __m256i isum, float *y) {
    const __m256 sum = s == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(y);
    const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(d_x));
    _mm256_storeu_ps(y, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(isum), sum));
}

// y[row] (+)= panel x columns for super-block s; y of the strips are 8 floats apart.
LUTRA_INLINE void gemm_tile(int sb, int strips, int n, int64_t s, const struct gemm_panel *panel,
                            const __m256i x[][256 / 16], const struct lutra_column *column, int64_t row) {
    __m256i acc0[GEMM_COLUMNS], acc1[GEMM_COLUMNS]; // of the first and the second strip
    for (int c = 0; c < n; c++) {
        acc0[c] = _mm256_setzero_si256();
        acc1[c] = _mm256_setzero_si256();
    }
    for (int step = 0; step < sb / 2; step++) {
        const __m256i w0 = panel[0].w[step], w1 = panel[strips - 1].w[step];
        for (int c = 0; c < n; c++) {
            const __m256i xs = _mm256_castps_si256(_mm256_broadcast_ss((const float *)x[c] + step));
            acc0[c] = _mm256_add_epi32(acc0[c], _mm256_madd_epi16(xs, w0));
            acc1[c] = _mm256_add_epi32(acc1[c], _mm256_madd_epi16(xs, w1));
        }
    }
    for (int c = 0; c < n; c++) {
        gemm_store(s, panel[0].d, column[c].d[s], acc0[c], column[c].y + row);
        if (strips == 2) {
            gemm_store(s, panel[1].d, column[c].d[s], acc1[c], column[c].y + row + LUTRA_ROWS);
        }
    }
}

// Up to GEMM_COLUMNS columns against all decoded panels.
LUTRA_INLINE void gemm_columns(int sb, int n, int panels, int64_t s, const struct gemm_panel *panel,
                               const struct lutra_column *column, int64_t row) {
    __m256i x[GEMM_COLUMNS][256 / 16];
    for (int c = 0; c < n; c++) {
        gemm_widen_x(sb, column[c].q + s * sb, x[c]);
    }
    int t = 0;
    for (; t + 2 <= panels; t += 2) {
        gemm_tile(sb, 2, n, s, panel + t, x, column, row + t * LUTRA_ROWS);
    }
    if (t < panels) {
        gemm_tile(sb, 1, n, s, panel + t, x, column, row + t * LUTRA_ROWS);
    }
}

LUTRA_INLINE void gemm_16x4(int cb, int sb, int64_t k, int64_t n_strips, const uint8_t *blocks,
                            const int8_t *library, int64_t n, const struct lutra_column *columns) {
    const int64_t strip_bytes = k / sb * cb_block_bytes(cb, sb);
    struct gemm_panel panel[GEMM_PANELS];
    for (int64_t first = 0; first < n; first += GEMM_BLOCK) {
        const int64_t end = first + GEMM_BLOCK < n ? first + GEMM_BLOCK : n;
        for (int64_t strip = 0; strip < n_strips; strip += GEMM_PANELS) {
            const int panels = n_strips - strip < GEMM_PANELS ? (int)(n_strips - strip) : GEMM_PANELS;
            for (int64_t s = 0; s < k / sb; s++) {
                for (int t = 0; t < panels; t++) {
                    const uint8_t *block = blocks + (strip + t) * strip_bytes + s * cb_block_bytes(cb, sb);
                    gemm_decode(cb, sb, block, library, &panel[t]);
                }
                int64_t c = first;
                for (; end - c >= 4; c += 4) {
                    gemm_columns(sb, 4, panels, s, panel, columns + c, strip * LUTRA_ROWS);
                }
                for (; end - c >= 2; c += 2) {
                    gemm_columns(sb, 2, panels, s, panel, columns + c, strip * LUTRA_ROWS);
                }
                if (c < end) {
                    gemm_columns(sb, 1, panels, s, panel, columns + c, strip * LUTRA_ROWS);
                }
            }
        }
    }
}

#endif
