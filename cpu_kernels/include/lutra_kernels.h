// SPDX-License-Identifier: MIT
// Every kernel of Lutra: what each job computes, which kernels this build has, and which one runs.
//
// A kernel is named lutra_<op>_<type>_<tile>_<set>; its file has the same name. The scalar
// reference (set "ref") is the specification: every other set gives the same int32 sums and, the
// float part being fixed below, the same bits.
#ifndef LUTRA_KERNELS_H
#define LUTRA_KERNELS_H

#include "../formats/cb.h"
#include "lutra_sets.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- jobs ----------------------------------------------------------------------------------
//
// Activations: per super-block (sb = 256 or 64, the weight type's) of one row x[k]
//
//     d = amax / 127      q = round_half_to_even(x * (127 / amax))  in [-127, 127]
//
// amax = 0 (or below 1e-30): d = 0, q = 0. A NaN or infinity in x: d = NaN, q = 0, so that it shows.
typedef void lutra_quantize_fn(int64_t k, const float *x, int8_t *q, float *d);

// Two planes: the second one is the same of what the first one leaves, lutra_cb_rest (lutra_ref.h) for a
// super-block, and y is the first plane's y + the second plane's. The product and the difference round:
//
//     rest = x - d * q         x ~ d * q + d' * q' with d' <= d / 254: 15 bits of the largest x

// Where the weights of a job begin. The bodies move it on to a block or a chunk of them.
struct lutra_weights {
    const uint8_t *strips;
    const uint8_t *second; // the second layer's codes of these strips; NULL for a type of one layer
    const int8_t *library; // the first layer's, then the second's
};

// y[8 * n_strips] = W x. Per row, in order of the super-blocks s, starting from acc = 0:
//
//     acc = fmaf(d_w[s] * d_x[s], (float)isum[s], acc)      isum = sum over sb weights of entry * q
typedef void lutra_gemv_fn(int64_t k, int64_t n_strips, const struct lutra_weights *w, const int8_t *q,
                           const float *d, float *y);

// One activation row of a gemm: q[k], d[k / sb] in, y[8 * n_strips] out.
struct lutra_column {
    const int8_t *q;
    const float *d;
    float *y;
};

// The same for n columns; columns may share q and d (experts of a MoE do).
typedef void lutra_gemm_fn(int64_t k, int64_t n_strips, const struct lutra_weights *w, int64_t n,
                           const struct lutra_column *columns);

// The same for at most LUTRA_BATCH columns: parallel chats, speculative decoding. Weights still come
// from memory once, and there are too few columns to pay for a decoded panel.
enum { LUTRA_BATCH = 8 };
typedef lutra_gemm_fn lutra_batch_fn;

// y[k] = row `row` (0..7) of one strip, as float: d * entry.
typedef void lutra_dequantize_fn(int64_t k, const struct lutra_weights *w, int row, float *y);

// ---- registry ------------------------------------------------------------------------------

enum lutra_op {
    LUTRA_OP_GEMV,
    LUTRA_OP_BATCH,
    LUTRA_OP_GEMM,
    LUTRA_OP_DEQUANTIZE,
    LUTRA_OP_QUANTIZE,
    LUTRA_OP_COUNT
};

struct lutra_kernel {
    const char *name; // "lutra_gemv_cb4_4x1_avx2"
    enum lutra_op op;
    enum lutra_set set;
    int32_t type; // ggml type id; for LUTRA_OP_QUANTIZE the super-block, 256 or 64
    union {
        lutra_gemv_fn *gemv;
        lutra_batch_fn *batch;
        lutra_gemm_fn *gemm;
        lutra_dequantize_fn *dequantize;
        lutra_quantize_fn *quantize;
    } fn;
};

// The ggml types, and the members that only the reference knows; NULL when there is none.
const struct lutra_cb_format *lutra_cb_format_of_type(int32_t type);
const struct lutra_cb_format *lutra_cb_format_of_name(const char *name);

// The type of a tensor that is cut down to its first layer: f itself if it has no other, or if there is no
// such type.
const struct lutra_cb_format *lutra_cb_first_layer(const struct lutra_cb_format *f);

int lutra_kernel_count(void);                      // compiled into this build
const struct lutra_kernel *lutra_kernel_at(int i); // i < lutra_kernel_count()
const char *lutra_set_name(enum lutra_set set);    // "neon_dotprod"
bool lutra_set_supported(enum lutra_set set);      // by the CPU we run on

// The kernel that runs this job: the best supported set, or, with LUTRA_KERNELS=<set> in the
// environment, the best one that is not above that set (ref where the set has no such kernel).
// The environment is read at the first call of these two; the choice stays what it was then.
const struct lutra_kernel *lutra_kernel_chosen(enum lutra_op op, int32_t type);

// NULL, or why LUTRA_KERNELS cannot be obeyed: unknown set, not compiled in, or not on this CPU.
// Callers refuse to compute while this is not NULL.
const char *lutra_kernels_error(void);

// For tests, while nothing else runs: forgets the choice, so that LUTRA_KERNELS is read again.
void lutra_kernels_reset(void);

#ifdef __cplusplus
}
#endif

#endif
