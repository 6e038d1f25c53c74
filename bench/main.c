// SPDX-License-Identifier: MIT
// lutra_bench_SET: Lutra's kernels of one instruction set, and upstream's compiled for the same set.
//
//   lutra_bench_SET list                           name, set, job, type, weight bytes per unit; one line each
//   lutra_bench_SET mark KERNEL JOB K ROWS COLUMNS    runs it once in a region that trace_plugin.c records
//   lutra_bench_SET time KERNEL JOB K ROWS COLUMNS    runs it for a while, prints ns per unit
//
// A unit is 32 weights x 1 column. The status is 3 where the CPU lacks the set. scripts/bench_kernels
// drives this program.
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MARK = 0xA5A5 }; // the system call that marks the region, see trace_plugin.c

static const char *const op_names[LUTRA_OP_COUNT] = {
    [LUTRA_OP_GEMV] = "gemv",         [LUTRA_OP_BATCH] = "batch",
    [LUTRA_OP_GEMM] = "gemm",         [LUTRA_OP_DEQUANTIZE] = "dequantize",
    [LUTRA_OP_QUANTIZE] = "quantize",
};

static double now(void) { // processor time of this thread: other work on the machine disturbs it less
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double seconds_of(const struct bench_kernel *kernel, const struct operands *o, int runs) {
    const double start = now();
    for (int i = 0; i < runs; i++) {
        kernel->run(kernel, o);
    }
    return (now() - start) / runs;
}

// Seconds of one run: the best of the groups of runs that fit into a fifth of a second, at least three.
// A group takes a millisecond or more, so that reading the clock does not count.
static double fastest(const struct bench_kernel *kernel, const struct operands *o) {
    int runs = 1;
    while (runs < 1 << 20 && runs * seconds_of(kernel, o, runs) < 1e-3) {
        runs *= 2;
    }
    double best = 1e9, total = 0;
    for (int i = 0; i < 3 || total < 0.2; i++) {
        const double seconds = seconds_of(kernel, o, runs);
        total += runs * seconds;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static void list(const struct bench_kernel *kernels) {
    for (const struct bench_kernel *kernel = kernels; kernel->name; kernel++) {
        const struct bench_block *b = &kernel->block;
        const double bytes =
            b->bytes ? 32.0 * (double)(b->bytes + b->second) / (double)(b->weights * b->rows) : 0;
        printf("%s\t%s\t%s\t%s\t%g\n", kernel->name, kernel->set, op_names[kernel->op], kernel->type, bytes);
    }
}

static const struct bench_kernel *find(const struct bench_kernel *kernels, const char *name, const char *op) {
    for (const struct bench_kernel *kernel = kernels; kernel->name; kernel++) {
        if (strcmp(kernel->name, name) == 0 && strcmp(op_names[kernel->op], op) == 0) {
            return kernel;
        }
    }
    return NULL;
}

static bool supported(void) {
    for (int set = 0; set < LUTRA_SET_COUNT; set++) {
        if (strcmp(lutra_set_name((enum lutra_set)set), LUTRA_BENCH_SET) == 0) {
            return lutra_set_supported((enum lutra_set)set);
        }
    }
    return false;
}

int main(int argc, char **argv) {
    if (!supported()) {
        fprintf(stderr, "this CPU lacks %s\n", LUTRA_BENCH_SET);
        return 3;
    }
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        list(bench_lutra_kernels());
        list(bench_upstream_kernels());
        return 0;
    }
    const bool mark = argc == 7 && strcmp(argv[1], "mark") == 0;
    if (!mark && !(argc == 7 && strcmp(argv[1], "time") == 0)) {
        fprintf(stderr, "usage: %s list | mark KERNEL JOB K ROWS COLUMNS | time KERNEL JOB K ROWS COLUMNS\n",
                argv[0]);
        return 2;
    }
    const struct bench_kernel *kernel = find(bench_lutra_kernels(), argv[2], argv[3]);
    if (!kernel) {
        kernel = find(bench_upstream_kernels(), argv[2], argv[3]);
    }
    const int64_t k = atoll(argv[4]), rows = atoll(argv[5]), columns = atoll(argv[6]);
    if (!kernel || k < 256 || k % 256 || rows < 8 || rows % 8 || columns < 1) {
        fprintf(stderr, "no such kernel, K no multiple of 256, or ROWS no multiple of 8\n");
        return 2;
    }
    struct operands o = operands_new(&kernel->block, k, rows, columns);
    kernel->prepare(kernel, &o);

    const bool matmul = kernel->op != LUTRA_OP_DEQUANTIZE && kernel->op != LUTRA_OP_QUANTIZE;
    const double units = (double)k / 32 * (matmul ? (double)(rows * columns) : 1);
    if (mark) {
        syscall(MARK, 1);
        kernel->run(kernel, &o);
        syscall(MARK, 0);
        printf("%.0f units\n", units);
    } else {
        printf("%.5f ns per unit\n", 1e9 * fastest(kernel, &o) / units);
    }
    return 0;
}
