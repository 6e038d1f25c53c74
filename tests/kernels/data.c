// SPDX-License-Identifier: MIT
// Checks, random numbers, guarded buffers and made-up tensors.
#include "harness.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GUARD = 64, GUARD_BYTE = 0xa5 };

int checks_failed;
enum placement placement;

void check(bool ok, const char *format, ...) {
    if (ok) {
        return;
    }
    checks_failed++;
    if (checks_failed <= 20) {
        va_list args;
        va_start(args, format);
        printf("FAILED: ");
        vprintf(format, args);
        printf("\n");
        va_end(args);
    }
}

static uint64_t random_state = 1;

void random_seed(uint64_t seed) {
    random_state = seed;
}

uint32_t random_bits(void) { // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (uint32_t)((z ^ z >> 31) >> 32);
}

float random_normal(void) { // near enough: the sum of 4 uniforms, made variance 1
    int sum = -0x20000;
    for (int i = 0; i < 2; i++) {
        const uint32_t bits = random_bits();
        sum += (int)(bits & 0xffff) + (int)(bits >> 16);
    }
    return (float)sum * 0x1.bb67aep-16f;
}

static void *memory(void *p) {
    if (!p || p == MAP_FAILED) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return p;
}

static struct buffer buffer_new(size_t bytes, size_t offset, size_t guard) {
    struct buffer b = {.bytes = bytes, .offset = offset};
    b.base = memory(malloc(2 * guard + offset + bytes));
    memset(b.base, GUARD_BYTE, 2 * guard + offset + bytes);
    b.data = b.base + guard + offset;
    return b;
}

// Pages without access around as many pages as hold the bytes.
static struct buffer pages_new(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inside = (bytes + page - 1) / page * page;
    struct buffer b = {.bytes = bytes, .mapped = inside + 2 * page};
    b.base = memory(mmap(NULL, b.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (inside && mprotect(b.base + page, inside, PROT_READ | PROT_WRITE) != 0) {
        memory(NULL);
    }
    b.data = b.base + page + (placement == BEFORE_GUARD ? inside - bytes : 0);
    return b;
}

struct buffer input_new(size_t bytes, size_t offset) {
    return placement == UNALIGNED ? buffer_new(bytes, offset, 0) : pages_new(bytes);
}

struct buffer output_new(size_t bytes, size_t offset) {
    return buffer_new(bytes, offset, GUARD);
}

bool output_intact(const struct buffer *b) {
    for (size_t i = 0; i < GUARD + b->offset; i++) {
        if (b->base[i] != GUARD_BYTE) {
            return false;
        }
    }
    for (size_t i = 0; i < GUARD; i++) {
        if (b->data[b->bytes + i] != GUARD_BYTE) {
            return false;
        }
    }
    return true;
}

void buffer_free(struct buffer *b) {
    if (b->mapped) {
        munmap(b->base, b->mapped);
    } else {
        free(b->base);
    }
    memset(b, 0, sizeof(*b));
}

bool same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(isnan(a[i]) && isnan(b[i]))) {
            return false;
        }
    }
    return true;
}

static int8_t entry_of(enum weights_kind kind, size_t i) {
    switch (kind) {
    case WEIGHTS_ALL_MAX:
        return 127;
    case WEIGHTS_ALL_MIN:
        return -127;
    case WEIGHTS_ALTERNATING:
        return i % 2 ? -127 : 127;
    default:
        return (int8_t)((int)(random_bits() % 255) - 127);
    }
}

static uint16_t scale_of(enum weights_kind kind, size_t i) {
    static const uint16_t odd[] = {0x0000, 0x8000, 0x0001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x3c00};
    if (kind == WEIGHTS_SCALES_ODD) {
        return odd[i % (sizeof(odd) / sizeof(odd[0]))];
    }
    if (kind == WEIGHTS_SCALES_ONE) {
        return 0x3c00;
    }
    return (uint16_t)(0x1000 + random_bits() % 0x1800); // 2^-11 .. 2^-5
}

struct tensor tensor_new(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                         enum weights_kind kind) {
    const int64_t rows = n_strips * LUTRA_ROWS;
    const size_t n_codes = (size_t)(rows * k / f->pair);
    const size_t n_selectors = (size_t)(rows * k / LUTRA_GROUP);
    const size_t n_d = (size_t)(rows * k / f->sb);
    uint8_t *codes = malloc(n_codes + 1);
    uint8_t *selectors = malloc(n_selectors + 1);
    uint16_t *d = malloc(2 * n_d + 1);
    for (size_t i = 0; i < n_codes; i++) {
        const uint32_t code = kind == WEIGHTS_CODES_ZERO   ? 0
                              : kind == WEIGHTS_CODES_ONES ? 255
                                                           : random_bits();
        codes[i] = (uint8_t)(code & ((1u << f->bits) - 1));
    }
    for (size_t i = 0; i < n_selectors; i++) {
        const uint32_t t = kind == WEIGHTS_CODES_ZERO ? 0 : kind == WEIGHTS_CODES_ONES ? 255 : random_bits();
        selectors[i] = (uint8_t)t;
    }
    for (size_t i = 0; i < n_d; i++) {
        d[i] = scale_of(kind, i);
    }
    // Kernels must not rely on aligned strips or libraries.
    struct tensor t = {.f = f, .k = k, .n_strips = n_strips};
    t.strips = input_new((size_t)rows * lutra_cb_row_bytes(f, k), 1);
    t.library = input_new(lutra_cb_library_bytes(f), 3);
    lutra_cb_pack(f, k, rows, codes, selectors, d, t.strips.data);
    t.second = input_new((size_t)rows * lutra_cb_second_row_bytes(f, k), 1);
    for (size_t i = 0; i < (size_t)rows * lutra_cb_second_row_bytes(f, k); i++) { // any bits are codes
        t.second.data[i] = kind == WEIGHTS_CODES_ZERO   ? 0
                           : kind == WEIGHTS_CODES_ONES ? 255
                                                        : (uint8_t)random_bits();
    }
    for (size_t i = 0; i < lutra_cb_library_bytes(f); i++) {
        t.library.data[i] = (uint8_t)entry_of(kind, i);
    }
    t.weights = (struct lutra_weights){t.strips.data, t.second.data, (const int8_t *)t.library.data};
    free(codes);
    free(selectors);
    free(d);
    return t;
}

void tensor_free(struct tensor *t) {
    buffer_free(&t->strips);
    buffer_free(&t->second);
    buffer_free(&t->library);
}

void fill_x(float *x, int64_t k, enum x_kind kind) {
    for (int64_t i = 0; i < k; i++) {
        switch (kind) {
        case X_INTEGERS:
            x[i] = i % 64 ? (float)((int)(random_bits() % 255) - 127) : 127;
            break;
        case X_MAX:
            x[i] = 3;
            break;
        case X_MIN:
            x[i] = -3;
            break;
        case X_ALTERNATING:
            x[i] = i % 2 ? -3.0f : 3.0f;
            break;
        case X_ZERO:
            x[i] = i % 2 ? -0.0f : 0.0f;
            break;
        case X_TINY:
            x[i] = random_normal() * 1e-40f;
            break;
        case X_HUGE:
            x[i] = i % 7 ? random_normal() * 1e37f : FLT_MAX;
            break;
        case X_NOT_FINITE:
            x[i] = i % 200 == 150 ? (i % 3 ? NAN : -INFINITY) : random_normal();
            break;
        default:
            x[i] = random_normal();
        }
    }
}
