// SPDX-License-Identifier: MIT
// Strips on all cores; what a strip is, the reference says.
#include "quant.h"

#include <stdatomic.h>
#include <stdlib.h>

struct pack {
    struct lutra_cb_format format;
    int64_t k;
    const uint8_t *codes;
    const uint16_t *selectors, *d;
    uint8_t *strips; // or the second layer's codes
    atomic_bool failed;
};

static void pack_strip(void *context, int64_t strip) {
    struct pack *p = context;
    const int64_t k = p->k, row = strip * LUTRA_ROWS, n = LUTRA_ROWS * k / LUTRA_GROUP;
    uint8_t *selectors = malloc((size_t)n);
    if (!selectors) {
        p->failed = true;
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        selectors[i] = (uint8_t)p->selectors[strip * n + i];
    }
    lutra_cb_pack(&p->format, k, LUTRA_ROWS, p->codes + row * k / p->format.pair, selectors,
                  p->d + row * (k / p->format.sb), p->strips + row * lutra_cb_row_bytes(&p->format, k));
    free(selectors);
}

enum lutra_status lutra_pack(const struct lutra_shape *shape, int64_t rows, int64_t k, const uint8_t *codes,
                             const uint16_t *selectors, const uint16_t *d, int threads, uint8_t *strips) {
    if (!lutra_valid_matrix(shape, rows, k) || rows % LUTRA_ROWS || shape->group != LUTRA_GROUP ||
        shape->tables > LUTRA_TABLES || shape->sb % LUTRA_CHUNK ||
        !lutra_valid_codes(shape, rows, k, codes, selectors)) {
        return LUTRA_REFUSED;
    }
    struct pack p = {.format = {.bits = shape->bits, .pair = shape->pair, .sb = shape->sb},
                     .k = k,
                     .codes = codes,
                     .selectors = selectors,
                     .d = d,
                     .strips = strips};
    lutra_parallel(rows / LUTRA_ROWS, threads, pack_strip, &p);
    return p.failed ? LUTRA_NO_MEMORY : LUTRA_DONE;
}

static void pack_second(void *context, int64_t strip) {
    struct pack *p = context;
    const int64_t row = strip * LUTRA_ROWS;
    lutra_cb_pack_second(&p->format, p->k, LUTRA_ROWS, p->codes + row * p->k / p->format.pair2,
                         p->strips + row * lutra_cb_second_row_bytes(&p->format, p->k));
}

enum lutra_status lutra_pack_second(const struct lutra_shape *shape, int64_t rows, int64_t k,
                                    const uint8_t *codes, int threads, uint8_t *second) {
    uint8_t bits = 0;
    if (!lutra_valid_matrix(shape, rows, k) || rows % LUTRA_ROWS || shape->group != LUTRA_GROUP ||
        shape->sb % LUTRA_CHUNK) {
        return LUTRA_REFUSED;
    }
    for (int64_t i = 0; i < rows * k / shape->pair; i++) {
        bits |= codes[i];
    }
    if (bits >> shape->bits) {
        return LUTRA_REFUSED;
    }
    struct pack p = {.format = {.bits2 = shape->bits, .pair2 = shape->pair, .sb = shape->sb},
                     .k = k,
                     .codes = codes,
                     .strips = second};
    lutra_parallel(rows / LUTRA_ROWS, threads, pack_second, &p);
    return LUTRA_DONE;
}
