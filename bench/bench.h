// SPDX-License-Identifier: MIT
// The bench program: runs one kernel, Lutra's or upstream's, on made-up operands of a given shape.
#ifndef LUTRA_BENCH_H
#define LUTRA_BENCH_H

#include "lutra_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Operands of every job. x, weights and library are filled in when prepare() is called.
struct operands {
    int64_t k;
    int64_t rows;
    int64_t columns;
    const uint8_t *weights; // blocks, see below
    const uint8_t *second;  // Lutra's jobs only: the second layer's codes, and all libraries
    const int8_t *library;
    const float *x;    // [columns][k]
    float *y;          // [columns][rows]; dequantize: [k]
    void *activations; // made from x by prepare(), in the kernel's own format
};

// How weights are stored: `rows` interleaved rows of `weights` weights in `bytes` bytes, and `second` bytes
// elsewhere. Any bytes are valid codes; only the fp16 scales must be reasonable numbers.
struct bench_block {
    int64_t weights;
    int64_t rows;
    size_t bytes;
    size_t scale_offset;
    int scales;
    size_t second;
};

struct bench_kernel {
    const char *name; // of the function
    const char *set;  // instruction set it is compiled for
    enum lutra_op op;
    const char *type; // "CB4", "Q4_0"
    struct bench_block block;
    const void *code; // what prepare() and run() need to know
    void (*prepare)(const struct bench_kernel *kernel, struct operands *o);
    void (*run)(const struct bench_kernel *kernel, const struct operands *o);
};

// The kernels of this program, in arrays that end with a NULL name.
const struct bench_kernel *bench_lutra_kernels(void);
const struct bench_kernel *bench_upstream_kernels(void);

// Operands of this shape, ready for prepare().
struct operands operands_new(const struct bench_block *block, int64_t k, int64_t rows, int64_t columns);

// Memory of that many bytes at the start of a cache line; never freed, as the program runs one kernel.
void *bench_alloc(size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
