// SPDX-License-Identifier: MIT
// The bodies of the reference kernels: lutra_ref.h for the ggml type with this id.
#ifndef LUTRA_REF_BODY_H
#define LUTRA_REF_BODY_H

#include "../include/lutra_ref.h"

static inline void quantize(int sb, int64_t k, const float *x, int8_t *q, float *d) {
    lutra_cb_quantize_x(sb, k, x, q, d);
}

static inline void dequantize(int32_t type, int64_t k, struct lutra_weights w, int row, float *y) {
    lutra_cb_dequantize(lutra_cb_format_of_type(type), k, &w, row, y);
}

static inline void gemv(int32_t type, int64_t k, int64_t n_strips, struct lutra_weights w, const int8_t *q,
                        const float *d, float *y) {
    lutra_cb_gemv(lutra_cb_format_of_type(type), k, n_strips, &w, q, d, y);
}

static inline void gemm(int32_t type, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                        const struct lutra_column *columns) {
    lutra_cb_gemm(lutra_cb_format_of_type(type), k, n_strips, &w, n, columns);
}

static inline void batch(int32_t type, int64_t k, int64_t n_strips, struct lutra_weights w, int64_t n,
                         const struct lutra_column *columns) {
    gemm(type, k, n_strips, w, n, columns);
}

#endif
