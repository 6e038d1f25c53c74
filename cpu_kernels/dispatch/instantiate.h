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
    void function(int64_t k, const uint8_t *strip, const int8_t *library, int row, float *y) {               \
        dequantize(__VA_ARGS__, k, strip, library, row, y);                                                  \
    }

#define LUTRA_KERNEL_gemv(function, ...)                                                                     \
    void function(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,                 \
                  const int8_t *q, const float *d, float *y) {                                               \
        gemv(__VA_ARGS__, k, n_strips, strips, library, q, d, y);                                            \
    }

#define LUTRA_KERNEL_batch(function, ...)                                                                    \
    void function(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library, int64_t n,      \
                  const struct lutra_column *columns) {                                                      \
        batch(__VA_ARGS__, k, n_strips, strips, library, n, columns);                                        \
    }

#define LUTRA_KERNEL_gemm(function, ...)                                                                     \
    void function(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library, int64_t n,      \
                  const struct lutra_column *columns) {                                                      \
        gemm(__VA_ARGS__, k, n_strips, strips, library, n, columns);                                         \
    }

#endif
