// SPDX-License-Identifier: MIT
// A kernel from its body: LUTRA_KERNEL(op, function, type...) defines `function` as the inline function `op`
// of the header included before, for the type that the arguments after `function` name.
#ifndef LUTRA_DISPATCH_INSTANTIATE_H
#define LUTRA_DISPATCH_INSTANTIATE_H

#include "kernels.h"

#define LUTRA_KERNEL(op, function, ...) LUTRA_KERNEL_##op(function, __VA_ARGS__)

#define LUTRA_KERNEL_quantize(function, ...)                                                                 \
    void function(int64_t k, const float *x, int8_t *q, float *d) {                                          \
        quantize(__VA_ARGS__, k, x, q, d);                                                                   \
    }

#define LUTRA_KERNEL_dequantize(function, ...)                                                               \
    void function(int64_t k, const struct lutra_weights *w, int row, float *y) {                             \
        dequantize(__VA_ARGS__, k, *w, row, y);                                                              \
    }

#define LUTRA_KERNEL_gemv(function, ...)                                                                     \
    void function(int64_t k, int64_t n_strips, const struct lutra_weights *w, const int8_t *q,               \
                  const float *d, float *y) {                                                                \
        gemv(__VA_ARGS__, k, n_strips, *w, q, d, y);                                                         \
    }

#define LUTRA_KERNEL_batch(function, ...)                                                                    \
    void function(int64_t k, int64_t n_strips, const struct lutra_weights *w, int64_t n,                     \
                  const struct lutra_column *columns) {                                                      \
        batch(__VA_ARGS__, k, n_strips, *w, n, columns);                                                     \
    }

#define LUTRA_KERNEL_gemm(function, ...)                                                                     \
    void function(int64_t k, int64_t n_strips, const struct lutra_weights *w, int64_t n,                     \
                  const struct lutra_column *columns) {                                                      \
        gemm(__VA_ARGS__, k, n_strips, *w, n, columns);                                                      \
    }

#endif
