// SPDX-License-Identifier: MIT
// Lutra's kernels for the bench: those of the registry that belong to this program's set, and the
// reference.
#include "bench.h"

#include <string.h>

struct lutra_activations {
    int8_t *q;
    float *d;
    struct lutra_column *columns;
};

static void prepare(const struct bench_kernel *kernel, struct operands *o) {
    const struct lutra_kernel *code = kernel->code;
    const int64_t sb = code->op == LUTRA_OP_QUANTIZE ? code->type : kernel->block.weights;
    struct lutra_activations *a = bench_alloc(sizeof(*a));
    a->q = bench_alloc((size_t)(o->k * o->columns));
    a->d = bench_alloc((size_t)(o->k / sb * o->columns) * sizeof(float));
    a->columns = bench_alloc((size_t)o->columns * sizeof(*a->columns));
    const struct lutra_kernel *quantize = lutra_kernel_chosen(LUTRA_OP_QUANTIZE, (int32_t)sb);
    for (int64_t c = 0; c < o->columns; c++) {
        a->columns[c] = (struct lutra_column){a->q + c * o->k, a->d + c * (o->k / sb), o->y + c * o->rows};
        quantize->fn.quantize(o->k, o->x + c * o->k, a->q + c * o->k, a->d + c * (o->k / sb));
    }
    o->activations = a;
}

static void run(const struct bench_kernel *kernel, const struct operands *o) {
    const struct lutra_kernel *code = kernel->code;
    const struct lutra_activations *a = o->activations;
    const int64_t n_strips = o->rows / LUTRA_ROWS;
    const struct lutra_weights w = {o->weights, o->second, o->library};
    switch (code->op) {
    case LUTRA_OP_GEMV:
        code->fn.gemv(o->k, n_strips, &w, a->q, a->d, o->y);
        break;
    case LUTRA_OP_BATCH:
        code->fn.batch(o->k, n_strips, &w, o->columns, a->columns);
        break;
    case LUTRA_OP_GEMM:
        code->fn.gemm(o->k, n_strips, &w, o->columns, a->columns);
        break;
    case LUTRA_OP_DEQUANTIZE:
        code->fn.dequantize(o->k, &w, 3, o->y);
        break;
    case LUTRA_OP_QUANTIZE:
        code->fn.quantize(o->k, o->x, a->q, a->d);
        break;
    default:
        break;
    }
}

const struct bench_kernel *bench_lutra_kernels(void) {
    const int count = lutra_kernel_count();
    struct bench_kernel *kernels = bench_alloc((size_t)(count + 1) * sizeof(*kernels));
    int n = 0;
    for (int i = 0; i < count; i++) {
        const struct lutra_kernel *code = lutra_kernel_at(i);
        const char *set = lutra_set_name(code->set);
        if (code->set != LUTRA_SET_REF && strcmp(set, LUTRA_BENCH_SET) != 0) {
            continue;
        }
        kernels[n] = (struct bench_kernel){.name = code->name,
                                           .set = set,
                                           .op = code->op,
                                           .type = code->type == 64 ? "Q8_64" : "Q8_256",
                                           .code = code,
                                           .prepare = prepare,
                                           .run = run};
        if (code->op != LUTRA_OP_QUANTIZE) {
            const struct lutra_cb_format *f = lutra_cb_format_of_type(code->type);
            kernels[n].type = f->name;
            const size_t second = LUTRA_ROWS * lutra_cb_second_row_bytes(f, f->sb);
            kernels[n].block =
                (struct bench_block){f->sb, LUTRA_ROWS, lutra_cb_block_bytes(f), 0, LUTRA_ROWS, second};
        }
        n++;
    }
    kernels[n].name = NULL;
    return kernels;
}
