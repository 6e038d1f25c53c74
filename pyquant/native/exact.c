// SPDX-License-Identifier: MIT
// Weights that lie on a grid, as some models are published: codes that stand for exactly the same numbers.
#include "quant.h"

#include "f16.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    LARGEST = 127, // entry
    MANTISSA = 11, // bits of a half
    BITS = 31,     // of a weight in units: at most 127 times 24 bits
    VALUES = 256,  // of an entry, as a byte
};

struct exact {
    const struct lutra_shape *shape;
    int64_t k;
    const float *w;
    const int8_t *library;
    int16_t *code_of; // [tables][256]: the code of an entry, -1 for none; of single weights only
    uint8_t *codes;
    uint16_t *selectors, *d;
    atomic_llong inexact;
};

// A weight that is not zero as an odd number of units of 2^exponent.
static uint32_t odd_part(float w, int *exponent) {
    uint32_t bits;
    memcpy(&bits, &w, 4);
    const int biased = bits >> 23 & 255;
    uint32_t mantissa = bits & 0x7fffff;
    mantissa |= biased ? 0x800000 : 0;
    const int zeros = __builtin_ctz(mantissa);
    *exponent = (biased ? biased : 1) - 150 + zeros;
    return mantissa >> zeros;
}

static uint32_t gcd(uint32_t a, uint32_t b) {
    while (b) {
        const uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

bool lutra_multiples(const float *w, int n, int8_t *q, uint16_t *d) {
    uint32_t odd[LUTRA_MAX_BLOCK];
    int exponent[LUTRA_MAX_BLOCK], least = 1 << 10;
    for (int i = 0; i < n; i++) {
        odd[i] = 0;
        q[i] = 0;
        if (w[i] != 0.0f) {
            odd[i] = odd_part(w[i], &exponent[i]);
            least = exponent[i] < least ? exponent[i] : least;
        }
    }
    *d = 0;
    uint32_t unit = 0, largest = 0;
    for (int i = 0; i < n; i++) {
        if (!odd[i]) {
            continue;
        }
        const int shift = exponent[i] - least;
        if (shift >= BITS || odd[i] >> (BITS - shift)) {
            return false;
        }
        const uint32_t m = odd[i] << shift;
        largest = m > largest ? m : largest;
        if (m != unit && (!unit || m % unit)) {
            unit = gcd(m, unit);
        }
        if (largest / unit > LARGEST) {
            return false;
        }
    }
    if (!unit) {
        return true; // zeros
    }
    // The unit is odd. Where it has too many bits for a half, a fraction of it may have fewer.
    uint32_t part = 1;
    while (unit % part || unit / part >> MANTISSA) {
        part += 2;
        if (largest / unit * part > LARGEST) {
            return false;
        }
    }
    const float scale = ldexpf((float)(unit / part), least);
    *d = lutra_f16(scale);
    if (lutra_f16_to_f32(*d) != scale) {
        return false;
    }
    for (int i = 0; i < n; i++) {
        q[i] = (int8_t)(w[i] / scale); // which has no remainder
    }
    return true;
}

// The codes of a group in a table, if it has all of them.
static bool in_table(const struct exact *e, int table, const int8_t *q, uint8_t *codes) {
    const struct lutra_shape *f = e->shape;
    const int points = f->group / f->pair, entries = 1 << f->bits;
    if (f->pair == 1) {
        const int16_t *code_of = e->code_of + table * VALUES;
        int missing = 0;
        for (int j = 0; j < points; j++) {
            const int16_t code = code_of[(uint8_t)q[j]];
            missing |= code < 0;
            codes[j] = (uint8_t)code;
        }
        return !missing;
    }
    const int8_t *entry = e->library + (size_t)table * 2 * entries;
    for (int j = 0; j < points; j++) {
        int code = -1;
        for (int c = entries - 1; c >= 0; c--) {
            code = entry[c] == q[j] && entry[entries + c] == q[points + j] ? c : code;
        }
        if (code < 0) {
            return false;
        }
        codes[j] = (uint8_t)code;
    }
    return true;
}

static bool encode_block(const struct exact *e, const float *w, int *table, uint8_t *codes,
                         uint16_t *selectors, uint16_t *d) {
    const struct lutra_shape *f = e->shape;
    int8_t q[LUTRA_MAX_BLOCK];
    if (!lutra_multiples(w, f->sb, q, d)) {
        return false;
    }
    for (int g = 0; g < f->sb / f->group; g++) {
        const int8_t *group = q + g * f->group;
        uint8_t *out = codes + g * f->group / f->pair;
        if (!in_table(e, *table, group, out)) { // where the group before it is, it is mostly too
            *table = 0;
            while (*table < f->tables && !in_table(e, *table, group, out)) {
                ++*table;
            }
            if (*table == f->tables) {
                *table = 0;
                return false;
            }
        }
        selectors[g] = (uint16_t)*table;
    }
    return true;
}

static void encode_row(void *context, int64_t row) {
    struct exact *e = context;
    const struct lutra_shape *f = e->shape;
    const int64_t blocks = e->k / f->sb;
    int table = 0;
    for (int64_t block = row * blocks; block < (row + 1) * blocks && !e->inexact; block++) {
        if (!encode_block(e, e->w + block * f->sb, &table, e->codes + block * f->sb / f->pair,
                          e->selectors + block * (f->sb / f->group), e->d + block)) {
            e->inexact++;
        }
    }
}

enum lutra_status lutra_encode_exact(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                                     const int8_t *library, int threads, uint8_t *codes, uint16_t *selectors,
                                     uint16_t *d, bool *exact) {
    if (!lutra_valid_matrix(shape, rows, k) || shape->sb > LUTRA_MAX_BLOCK ||
        !lutra_valid_library(shape, library) || !lutra_valid_weights(rows * k, w, NULL, 0)) {
        return LUTRA_REFUSED;
    }
    struct exact e = {
        .shape = shape, .k = k, .w = w, .library = library, .codes = codes, .selectors = selectors, .d = d};
    if (shape->pair == 1) {
        e.code_of = malloc((size_t)shape->tables * VALUES * sizeof *e.code_of);
        if (!e.code_of) {
            return LUTRA_NO_MEMORY;
        }
        memset(e.code_of, 0xff, (size_t)shape->tables * VALUES * sizeof *e.code_of);
        for (int t = 0; t < shape->tables; t++) {
            for (int c = (1 << shape->bits) - 1; c >= 0; c--) { // of equal entries the first
                e.code_of[t * VALUES + (uint8_t)library[(t << shape->bits) + c]] = (int16_t)c;
            }
        }
    }
    lutra_parallel(rows, threads, encode_row, &e);
    free(e.code_of);
    *exact = !e.inexact;
    return LUTRA_DONE;
}
