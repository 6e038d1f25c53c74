// SPDX-License-Identifier: MIT
// Made-up operands: any codes, scales of a reasonable size.
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    const size_t bytes = 16384; // the largest of the family
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

struct operands operands_new(const struct bench_block *block, int64_t k, int64_t rows, int64_t columns) {
    struct operands o = {.k = k, .rows = rows, .columns = columns};
    if (block->bytes) {
        o.weights = random_weights(block, k, rows);
        o.second = random_bytes((size_t)(k / block->weights * (rows / block->rows)) * block->second);
    }
    o.library = random_library();
    o.x = random_floats((size_t)(k * columns));
    const int64_t results = rows * columns;
    o.y = bench_alloc((size_t)(results > k ? results : k) * sizeof(float));
    return o;
}
