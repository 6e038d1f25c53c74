// SPDX-License-Identifier: MIT
// The kernel tests' tools: checks, random numbers, guarded buffers, made-up tensors.
#ifndef LUTRA_TESTS_KERNELS_HARNESS_H
#define LUTRA_TESTS_KERNELS_HARNESS_H

#include "lutra_ref.h"

#include <stddef.h>
#include <stdint.h>

// ---- checks: a failed one is printed and counted, the program goes on ------------------------

extern int checks_failed;
void check(bool ok, const char *format, ...) __attribute__((format(printf, 2, 3)));

// ---- random numbers, the same after the same seed ----------------------------------------------

void random_seed(uint64_t seed);
uint32_t random_bits(void);
float random_normal(void);

// ---- buffers of exactly `bytes` -----------------------------------------------------------------

struct buffer {
    uint8_t *data;
    uint8_t *base;
    size_t bytes;
    size_t offset;
    size_t mapped; // bytes at base when they are pages, 0 when they are malloc's
};

// Where the inputs lie that are made from now on. A read outside them crashes beside a page without
// access, on any machine; ASan finds it in all three.
enum placement {
    UNALIGNED, // `offset` bytes off alignment, to the end of the allocation
    BEFORE_GUARD,
    AFTER_GUARD,
    PLACEMENTS
};
extern enum placement placement;

struct buffer input_new(size_t bytes, size_t offset);
struct buffer output_new(size_t bytes, size_t offset); // `offset` bytes off alignment, guard bytes around
bool output_intact(const struct buffer *b);            // nobody wrote outside
void buffer_free(struct buffer *b);

// Bit for bit the same, except that one NaN is as good as another.
bool same_floats(const float *a, const float *b, size_t n);

// ---- tensors and activations of every nasty kind -----------------------------------------------

enum weights_kind {
    WEIGHTS_RANDOM,
    WEIGHTS_ALL_MAX,     // every entry 127
    WEIGHTS_ALL_MIN,     // every entry -127
    WEIGHTS_ALTERNATING, // entries 127 and -127 in turn
    WEIGHTS_CODES_ZERO,  // every code and selector 0
    WEIGHTS_CODES_ONES,  // every code and selector all ones
    WEIGHTS_SCALES_ODD,  // d zero, subnormal, largest, negative
    WEIGHTS_SCALES_ONE,  // every d 1
    WEIGHTS_KINDS
};

enum x_kind {
    X_RANDOM,
    X_INTEGERS,    // -127 to 127, so that q is x and d is 1
    X_MAX,         // every q 127
    X_MIN,         // every q -127
    X_ALTERNATING, // q 127 and -127 in turn
    X_ZERO,
    X_TINY,       // subnormal floats
    X_HUGE,       // near the largest float
    X_NOT_FINITE, // a NaN or an infinity in some super-blocks
    X_KINDS
};

struct tensor {
    const struct lutra_cb_format *f;
    int64_t k;
    int64_t n_strips;
    struct buffer strips;
    struct buffer second;
    struct buffer library;
    struct lutra_weights weights; // the three
};

struct tensor tensor_new(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                         enum weights_kind kind);
void tensor_free(struct tensor *t);

void fill_x(float *x, int64_t k, enum x_kind kind);

// ---- the tests ---------------------------------------------------------------------------------

void test_ref(void);
void test_dispatch(void);
void test_kernel(const struct lutra_kernel *kernel, bool brief);

// The reference kernel of the same job; NULL when there is none.
const struct lutra_kernel *reference_of(const struct lutra_kernel *kernel);

#endif
