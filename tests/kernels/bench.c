// Time per unit (32 weights x 1 activation row) of one kernel on one thread.
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) { // processor time of this thread: other work on the machine costs less noise
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct job {
    const struct lutra_kernel *kernel;
    struct tensor t;
    int64_t n;
    float *x;
    int8_t *q;
    float *d;
    float *y;
    struct lutra_column *columns;
};

static void run(const struct job *j) {
    const struct tensor *t = &j->t;
    const int8_t *library = (const int8_t *)t->library.data;
    switch (j->kernel->op) {
    case LUTRA_OP_GEMV:
        j->kernel->fn.gemv(t->k, t->n_strips, t->strips.data, library, j->q, j->d, j->y);
        break;
    case LUTRA_OP_BATCH:
        j->kernel->fn.batch(t->k, t->n_strips, t->strips.data, library, j->n, j->columns);
        break;
    case LUTRA_OP_GEMM:
        j->kernel->fn.gemm(t->k, t->n_strips, t->strips.data, library, j->n, j->columns);
        break;
    case LUTRA_OP_DEQUANTIZE:
        j->kernel->fn.dequantize(t->k, t->strips.data, library, 3, j->x);
        break;
    case LUTRA_OP_QUANTIZE:
        j->kernel->fn.quantize(t->k, j->x, j->q, j->d);
        break;
    default:
        check(false, "%s: no benchmark for this job", j->kernel->name);
    }
}

// Seconds of the fastest of the runs that fit into a fifth of a second, at least two.
static double fastest(const struct job *j) {
    double best = 1e9, total = 0;
    for (int i = 0; i < 2 || total < 0.2; i++) {
        const double start = now();
        run(j);
        const double seconds = now() - start;
        total += seconds;
        best = seconds < best ? seconds : best;
    }
    return best;
}

// The same strips over and over until the weights exceed any cache.
static void repeat_strips(struct tensor *t, size_t bytes) {
    const int64_t times = (int64_t)(bytes / t->strips.bytes) + 1;
    struct buffer strips = input_new((size_t)times * t->strips.bytes, 0);
    for (int64_t i = 0; i < times; i++) {
        memcpy(strips.data + (size_t)i * t->strips.bytes, t->strips.data, t->strips.bytes);
    }
    buffer_free(&t->strips);
    t->strips = strips;
    t->n_strips *= times;
}

// `bytes` of weights at least; as many as n_strips have when 0.
static double ns_per_unit(const struct lutra_kernel *kernel, int64_t k, int64_t n_strips, int64_t n,
                          size_t bytes) {
    const struct lutra_cb_format *f =
        lutra_cb_format_of_type(kernel->op == LUTRA_OP_QUANTIZE ? LUTRA_TYPE_CB4 : kernel->type);
    struct job j = {.kernel = kernel, .t = tensor_new(f, k, n_strips, WEIGHTS_RANDOM), .n = n};
    if (bytes) {
        repeat_strips(&j.t, bytes);
    }
    const int64_t rows = j.t.n_strips * LUTRA_ROWS;
    j.x = malloc((size_t)k * sizeof(float));
    j.q = malloc((size_t)(k * n));
    j.d = malloc((size_t)(k / 64 * n) * sizeof(float));
    j.y = malloc((size_t)(rows * n) * sizeof(float));
    j.columns = malloc((size_t)n * sizeof(*j.columns));
    fill_x(j.x, k, X_RANDOM);
    for (int64_t c = 0; c < n; c++) {
        j.columns[c] = (struct lutra_column){j.q + c * k, j.d + c * (k / f->sb), j.y + c * rows};
        lutra_cb_quantize_x(f->sb, k, j.x, j.q + c * k, j.d + c * (k / f->sb));
    }
    const double units = (double)k / 32 *
                         (kernel->op == LUTRA_OP_GEMV    ? (double)rows
                          : kernel->op == LUTRA_OP_BATCH ? (double)(rows * n)
                          : kernel->op == LUTRA_OP_GEMM  ? (double)(rows * n)
                                                         : 1);
    const double seconds = fastest(&j);
    tensor_free(&j.t);
    free(j.x);
    free(j.q);
    free(j.d);
    free(j.y);
    free(j.columns);
    return 1e9 * seconds / units;
}

void bench_kernel(const struct lutra_kernel *kernel) {
    printf("%-40s", kernel->name);
    switch (kernel->op) {
    case LUTRA_OP_GEMV: { // weights in the cache, and weights from memory
        const struct lutra_cb_format *f = lutra_cb_format_of_type(kernel->type);
        const double bytes_per_unit = (double)lutra_cb_row_bytes(f, 256) / 8;
        const double cached = ns_per_unit(kernel, 1024, 16, 1, 0);
        const double streamed = ns_per_unit(kernel, 1024, 16, 1, 100 << 20);
        printf(" %8.3f cached %8.3f streamed (%.1f GB/s)", cached, streamed, bytes_per_unit / streamed);
        break;
    }
    case LUTRA_OP_BATCH:
    case LUTRA_OP_GEMM: {
        static const int columns[] = {2, 4, 8, 32, 512};
        for (int i = 0; i < (kernel->op == LUTRA_OP_BATCH ? 3 : 5); i++) {
            printf(" %8.3f n=%d", ns_per_unit(kernel, 2048, 16, columns[i], 0), columns[i]);
        }
        break;
    }
    default:
        printf(" %8.3f", ns_per_unit(kernel, 4096, 1, 1, 0));
    }
    printf("\n");
    fflush(stdout);
}
