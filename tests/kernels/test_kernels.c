// SPDX-License-Identifier: MIT
// One kernel against the reference of the same job: the same bits on every input.
//
// The int32 sums are compared through the floats. Below 2^24, where they always stay (256 * 127 * 127
// < 2^22), a sum is exact as a float; with both scales 1 (WEIGHTS_SCALES_ONE with X_INTEGERS) y is the
// sum of up to 4 super-blocks itself, so no rounding hides a difference of 1.
#include "../../cpu_kernels/common.h"
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct lutra_kernel *reference_of(const struct lutra_kernel *kernel) {
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const struct lutra_kernel *other = lutra_kernel_at(i);
        if (other->set == LUTRA_SET_REF && other->op == kernel->op && other->type == kernel->type) {
            return other;
        }
    }
    return NULL;
}

// Activations of n columns: any q and d, or floats of one kind quantized by the reference.
struct activations {
    struct buffer q;
    struct buffer d;
};

static struct activations activations_new(int sb, int64_t k, int64_t n, enum x_kind kind) {
    struct activations a = {input_new((size_t)(n * k), 1), input_new((size_t)(n * (k / sb)) * 4, 4)};
    if (kind == X_RANDOM) { // without floats, which cost much under an emulator
        for (int64_t i = 0; i < n * k; i++) {
            a.q.data[i] = (uint8_t)(random_bits() % 255 - 127);
        }
        for (int64_t i = 0; i < n * (k / sb); i++) {
            ((float *)a.d.data)[i] = random_normal();
        }
        return a;
    }
    float *x = malloc((size_t)k * sizeof(float));
    for (int64_t c = 0; c < n; c++) {
        fill_x(x, k, kind);
        lutra_cb_quantize_x(sb, k, x, (int8_t *)a.q.data + c * k, (float *)a.d.data + c * (k / sb));
    }
    free(x);
    return a;
}

static void activations_free(struct activations *a) {
    buffer_free(&a->q);
    buffer_free(&a->d);
}

static void test_gemv(const struct lutra_kernel *kernel, const struct lutra_kernel *ref,
                      const struct tensor *t, enum x_kind x_kind, const char *what) {
    struct activations a = activations_new(t->f->sb, t->k, 1, x_kind);
    const size_t n = (size_t)t->n_strips * LUTRA_ROWS;
    struct buffer y = output_new(4 * n, 4), expected = output_new(4 * n, 4);
    const int8_t *q = (const int8_t *)a.q.data;
    ref->fn.gemv(t->k, t->n_strips, &t->weights, q, (float *)a.d.data, (float *)expected.data);
    kernel->fn.gemv(t->k, t->n_strips, &t->weights, q, (float *)a.d.data, (float *)y.data);
    check(same_floats((float *)y.data, (float *)expected.data, n), "%s: differs, %s", kernel->name, what);
    check(output_intact(&y), "%s: wrote outside y, %s", kernel->name, what);
    buffer_free(&y);
    buffer_free(&expected);
    activations_free(&a);
}

// gemm or batch: they differ in the number of columns only.
static lutra_gemm_fn *product_fn(const struct lutra_kernel *kernel) {
    return kernel->op == LUTRA_OP_BATCH ? kernel->fn.batch : kernel->fn.gemm;
}

static void test_gemm(const struct lutra_kernel *kernel, const struct lutra_kernel *ref,
                      const struct tensor *t, int64_t n, enum x_kind x_kind, const char *what) {
    struct activations a = activations_new(t->f->sb, t->k, n, x_kind);
    const size_t rows = (size_t)t->n_strips * LUTRA_ROWS;
    struct buffer all = input_new((size_t)n * sizeof(struct lutra_column), 8);
    struct lutra_column *columns = (struct lutra_column *)all.data;
    struct lutra_column *expected = malloc((size_t)(n + 1) * sizeof(*expected));
    struct buffer *y = malloc((size_t)(n + 1) * sizeof(*y)),
                  *y_ref = malloc((size_t)(n + 1) * sizeof(*y_ref));
    for (int64_t c = 0; c < n; c++) {
        const int64_t shared = c % 5 == 4 ? c - 1 : c; // every fifth column shares its activations
        y[c] = output_new(4 * rows, 4);
        y_ref[c] = output_new(4 * rows, 4);
        columns[c].q = (int8_t *)a.q.data + shared * t->k;
        columns[c].d = (float *)a.d.data + shared * (t->k / t->f->sb);
        columns[c].y = (float *)y[c].data;
        expected[c] = columns[c];
        expected[c].y = (float *)y_ref[c].data;
    }
    product_fn(ref)(t->k, t->n_strips, &t->weights, n, expected);
    product_fn(kernel)(t->k, t->n_strips, &t->weights, n, columns);
    for (int64_t c = 0; c < n; c++) {
        check(same_floats(columns[c].y, expected[c].y, rows), "%s: column %d of %d differs, %s", kernel->name,
              (int)c, (int)n, what);
        check(output_intact(&y[c]), "%s: wrote outside y, %d columns, %s", kernel->name, (int)n, what);
        buffer_free(&y[c]);
        buffer_free(&y_ref[c]);
    }
    buffer_free(&all);
    free(expected);
    free(y);
    free(y_ref);
    activations_free(&a);
}

static void test_dequantize(const struct lutra_kernel *kernel, const struct lutra_kernel *ref,
                            const struct tensor *t, const char *what) {
    for (int row = 0; row < LUTRA_ROWS; row++) {
        struct buffer y = output_new(4 * (size_t)t->k, 4), expected = output_new(4 * (size_t)t->k, 4);
        ref->fn.dequantize(t->k, &t->weights, row, (float *)expected.data);
        kernel->fn.dequantize(t->k, &t->weights, row, (float *)y.data);
        check(same_floats((float *)y.data, (float *)expected.data, (size_t)t->k), "%s: row %d differs, %s",
              kernel->name, row, what);
        check(output_intact(&y), "%s: wrote outside y, %s", kernel->name, what);
        buffer_free(&y);
        buffer_free(&expected);
    }
}

static void test_quantize(const struct lutra_kernel *kernel, const struct lutra_kernel *ref, int64_t k,
                          enum x_kind kind) {
    const int64_t sb = kernel->type;
    const size_t n_d = (size_t)(k / sb);
    struct buffer x = input_new(4 * (size_t)k, 4);
    struct buffer q = output_new((size_t)k, 1), q_ref = output_new((size_t)k, 1);
    struct buffer d = output_new(4 * n_d, 4), d_ref = output_new(4 * n_d, 4);
    fill_x((float *)x.data, k, kind);
    if (kind == X_RANDOM) { // ties: 127 makes the factor 1, so halves stay halves
        ((float *)x.data)[0] = 127;
        for (int64_t i = 1; i < sb; i++) {
            ((float *)x.data)[i] = (float)((int)(random_bits() % 253) - 126) + 0.5f;
        }
    }
    ref->fn.quantize(k, (float *)x.data, (int8_t *)q_ref.data, (float *)d_ref.data);
    kernel->fn.quantize(k, (float *)x.data, (int8_t *)q.data, (float *)d.data);
    check(memcmp(q.data, q_ref.data, (size_t)k) == 0, "%s: q differs, kind %d", kernel->name, kind);
    check(same_floats((float *)d.data, (float *)d_ref.data, n_d), "%s: d differs, kind %d", kernel->name,
          kind);
    check(output_intact(&q) && output_intact(&d), "%s: wrote outside, kind %d", kernel->name, kind);
    buffer_free(&x);
    buffer_free(&q);
    buffer_free(&q_ref);
    buffer_free(&d);
    buffer_free(&d_ref);
}

static void test_on_tensor(const struct lutra_kernel *kernel, const struct lutra_kernel *ref,
                           const struct tensor *t, enum x_kind x_kind, int64_t n, const char *what) {
    switch (kernel->op) {
    case LUTRA_OP_GEMV:
        test_gemv(kernel, ref, t, x_kind, what);
        break;
    case LUTRA_OP_BATCH:
    case LUTRA_OP_GEMM:
        test_gemm(kernel, ref, t, n, x_kind, what);
        break;
    case LUTRA_OP_DEQUANTIZE:
        test_dequantize(kernel, ref, t, what);
        break;
    default:
        check(false, "%s: no test for this job", kernel->name);
    }
}

// Rows of two of the longest spans and one super-block: sums that are put down and taken up again twice. The
// reference, which takes most of the time, computes all columns once for every number of them.
static void test_wide_rows(const struct lutra_kernel *kernel, const struct lutra_kernel *ref) {
    const struct lutra_cb_format *f = lutra_cb_format_of_type(kernel->type);
    struct tensor t = tensor_new(f, 2 * LUTRA_SPAN + f->sb, 2, WEIGHTS_RANDOM);
    if (kernel->op != LUTRA_OP_BATCH && kernel->op != LUTRA_OP_GEMM) {
        test_on_tensor(kernel, ref, &t, X_RANDOM, 1, "wide rows");
        tensor_free(&t);
        return;
    }
    enum { ROWS = 2 * LUTRA_ROWS };
    struct activations a = activations_new(f->sb, t.k, LUTRA_BATCH, X_RANDOM);
    struct lutra_column columns[LUTRA_BATCH], expected[LUTRA_BATCH];
    float y[LUTRA_BATCH][ROWS], y_ref[LUTRA_BATCH][ROWS];
    for (int c = 0; c < LUTRA_BATCH; c++) {
        columns[c].q = (int8_t *)a.q.data + c * t.k;
        columns[c].d = (float *)a.d.data + c * (t.k / f->sb);
        expected[c] = columns[c];
        columns[c].y = y[c];
        expected[c].y = y_ref[c];
    }
    product_fn(ref)(t.k, t.n_strips, &t.weights, LUTRA_BATCH, expected);
    for (int n = 1; n <= LUTRA_BATCH; n++) {
        memset(y, 0xff, sizeof(y)); // NaN
        product_fn(kernel)(t.k, t.n_strips, &t.weights, n, columns);
        check(same_floats(y[0], y_ref[0], (size_t)n * ROWS), "%s: wide rows differ, %d columns", kernel->name,
              n);
    }
    activations_free(&a);
    tensor_free(&t);
}

void test_kernel(const struct lutra_kernel *kernel, bool brief) {
    const struct lutra_kernel *ref = reference_of(kernel);
    if (!ref) {
        check(false, "%s: no reference", kernel->name);
        return;
    }
    if (kernel->op == LUTRA_OP_QUANTIZE) {
        for (int i = 0; i < X_KINDS * PLACEMENTS; i++) {
            placement = i % PLACEMENTS;
            test_quantize(kernel, ref, kernel->type, i / PLACEMENTS);
            test_quantize(kernel, ref, (1 + random_bits() % 7) * kernel->type, i / PLACEMENTS);
            if (brief) {
                return;
            }
        }
        test_quantize(kernel, ref, 2 * LUTRA_SPAN + kernel->type, X_RANDOM);
        return;
    }
    const struct lutra_cb_format *f = lutra_cb_format_of_type(kernel->type);
    char what[96];
    if (brief) { // no multiple of any block of strips or columns
        struct tensor t = tensor_new(f, 2 * f->sb, 5, WEIGHTS_RANDOM);
        test_on_tensor(kernel, ref, &t, X_RANDOM, kernel->op == LUTRA_OP_BATCH ? 5 : 29, "brief");
        tensor_free(&t);
        return;
    }
    // Every kind of weights with every kind of activations, in one small shape.
    placement = UNALIGNED;
    for (int w = 0; w < WEIGHTS_KINDS; w++) {
        struct tensor t = tensor_new(f, 2 * f->sb, 3, w);
        for (int x = 0; x < X_KINDS; x++) {
            snprintf(what, sizeof(what), "weights %d, x %d", w, x);
            test_on_tensor(kernel, ref, &t, x, 5, what);
        }
        tensor_free(&t);
    }
    // Shapes: every remainder of strips and columns; more strips and columns than one block.
    for (int place = 0; place < PLACEMENTS; place++) {
        placement = place;
        for (int strips = 0; strips <= 5; strips++) {
            const int blocks = 1 + (int)(random_bits() % 5);
            struct tensor t = tensor_new(f, blocks * f->sb, strips, WEIGHTS_RANDOM);
            snprintf(what, sizeof(what), "%d super-blocks, %d strips, placement %d", blocks, strips, place);
            if (kernel->op != LUTRA_OP_BATCH && kernel->op != LUTRA_OP_GEMM) {
                if (strips > 0) {
                    test_on_tensor(kernel, ref, &t, X_RANDOM, 1, what);
                }
                tensor_free(&t);
                continue;
            }
            for (int n = 0; n <= (kernel->op == LUTRA_OP_BATCH ? LUTRA_BATCH : 17); n++) {
                test_on_tensor(kernel, ref, &t, X_RANDOM, n, what);
            }
            tensor_free(&t);
        }
    }
    if (kernel->op == LUTRA_OP_GEMM) {
        struct tensor t = tensor_new(f, f->sb, 18, WEIGHTS_RANDOM);
        test_on_tensor(kernel, ref, &t, X_RANDOM, 263, "many strips and columns");
        tensor_free(&t);
    }
    test_wide_rows(kernel, ref);
}
