// SPDX-License-Identifier: MIT
// The scalar reference: the specification of packing, encoding and every kernel's arithmetic, for
// every member of the CB family (1 to 6 bits per code, 1 or 2 weights per code, both super-blocks, one layer
// of codes or two).
//
// All arrays are row-major and without padding. n_rows is a multiple of 8, k of the super-block.
//
//     codes      uint8   [n_rows][k / pair]   code c of group g at g * 32 / pair + c
//     selectors  uint8   [n_rows][k / 32]
//     d          fp16    [n_rows][k / sb]     as bits
//     library    int8    [256][pair][2^bits]
//     strips     uint8   n_rows * lutra_cb_row_bytes(f, k)
//     second     uint8   n_rows * lutra_cb_second_row_bytes(f, k), the second layer's codes
#ifndef LUTRA_REF_H
#define LUTRA_REF_H

#include "lutra_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Value of an IEEE half-precision number.
float lutra_f16_to_f32(uint16_t h);

// Codes, selectors and scales -> the strips as they lie in the file, and back.
void lutra_cb_pack(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *codes,
                   const uint8_t *selectors, const uint16_t *d, uint8_t *strips);
void lutra_cb_unpack(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *strips,
                     uint8_t *codes, uint8_t *selectors, uint16_t *d);

// The same for the codes of the second layer, [n_rows][k / pair2].
void lutra_cb_pack_second(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *codes,
                          uint8_t *second);
void lutra_cb_unpack_second(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *second,
                            uint8_t *codes);

// Encoding, in the first layer, by full search: for each group the table, and for each of its codes the
// entry, that minimise sum of importance * (w - d * entry)^2 for the given d; the lowest index wins a tie.
// importance: float [k], NULL for 1 everywhere.
void lutra_cb_encode(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const float *w,
                     const float *importance, const uint16_t *d, const int8_t *library, uint8_t *codes,
                     uint8_t *selectors);

// The entries of weights k0 .. k0 + n - 1 (multiples of 64) of one row of a strip, without d; the sums of
// both layers, modulo 256.
void lutra_cb_entries(const struct lutra_cb_format *f, int64_t k0, int64_t n, const struct lutra_weights *w,
                      int row, int8_t *entries);

// The jobs of lutra_kernels.h for any member of the family.
void lutra_cb_quantize_x(int sb, int64_t k, const float *x, int8_t *q, float *d);
void lutra_cb_rest(int n, const float *x, const int8_t *q, float d, float *rest); // see two planes
void lutra_cb_dequantize(const struct lutra_cb_format *f, int64_t k, const struct lutra_weights *w, int row,
                         float *y);
void lutra_cb_gemv(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                   const struct lutra_weights *w, const int8_t *q, const float *d, float *y);
void lutra_cb_gemm(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                   const struct lutra_weights *w, int64_t n, const struct lutra_column *columns);

#ifdef __cplusplus
}
#endif

#endif
