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

// ---- operands ----------------------------------------------------------------------------------------

void *bench_alloc(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return memory;
}

static uint64_t random_bits(void) { // xorshift64
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint8_t *random_bytes(size_t bytes) {
    uint8_t *data = bench_alloc(bytes + 8);
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t bits = random_bits();
        memcpy(data + i, &bits, sizeof(bits));
    }
    return data;
}

static uint8_t *random_weights(const struct bench_block *b, int64_t k, int64_t rows) {
    const size_t blocks = (size_t)(k / b->weights * (rows / b->rows));
    uint8_t *data = random_bytes(blocks * b->bytes);
    for (size_t i = 0; i < blocks; i++) {
        for (int s = 0; s < b->scales; s++) {
            const uint16_t scale = (uint16_t)(0x1000 + random_bits() % 0x1800); // 2^-11 to 2^-5
            memcpy(data + i * b->bytes + b->scale_offset + 2 * s, &scale, sizeof(scale));
        }
    }
    return data;
}

static int8_t *random_library(void) {
    const size_t bytes = 8192; // the largest of the family
    int8_t *library = (int8_t *)random_bytes(bytes);
    for (size_t i = 0; i < bytes; i++) {
        library[i] = library[i] == -128 ? -127 : library[i];
    }
    return library;
}

static float *random_floats(size_t n) { // uniform in [-1, 1)
    float *x = bench_alloc(n * sizeof(*x));
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)(int32_t)random_bits() * 0x1p-31f;
    }
    return x;
}

// ---- running -----------------------------------------------------------------------------------------

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
        const double bytes = b->bytes ? 32.0 * (double)b->bytes / (double)(b->weights * b->rows) : 0;
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
    struct operands o = {.k = atoll(argv[4]), .rows = atoll(argv[5]), .columns = atoll(argv[6])};
    if (!kernel || o.k < 256 || o.k % 256 || o.rows < 8 || o.rows % 8 || o.columns < 1) {
        fprintf(stderr, "no such kernel, K no multiple of 256, or ROWS no multiple of 8\n");
        return 2;
    }
    if (kernel->block.bytes) {
        o.weights = random_weights(&kernel->block, o.k, o.rows);
    }
    o.library = random_library();
    o.x = random_floats((size_t)(o.k * o.columns));
    const int64_t results = o.rows * o.columns;
    o.y = bench_alloc((size_t)(results > o.k ? results : o.k) * sizeof(float));
    kernel->prepare(kernel, &o);

    const bool matmul = kernel->op != LUTRA_OP_DEQUANTIZE && kernel->op != LUTRA_OP_QUANTIZE;
    const double units = (double)o.k / 32 * (matmul ? (double)results : 1);
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
