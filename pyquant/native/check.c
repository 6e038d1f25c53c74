// SPDX-License-Identifier: MIT
// What the entry points refuse, so that nothing is read or written beyond its place. The lengths of arrays
// are the caller's word.
#include "quant.h"

#include <math.h>

int lutra_quant_abi(void) {
    return LUTRA_QUANT_ABI;
}

bool lutra_valid_shape(const struct lutra_shape *f) {
    return f->bits >= 1 && f->bits <= 6 && (f->pair == 1 || f->pair == 2) &&
           (f->group == 16 || f->group == 32 || f->group == 64) && f->tables >= 1 &&
           f->tables <= LUTRA_MAX_TABLES && f->sb >= f->group && f->sb % f->group == 0;
}

bool lutra_valid_matrix(const struct lutra_shape *f, int64_t rows, int64_t k) {
    return lutra_valid_shape(f) && rows >= 1 && k >= 1 && k % f->sb == 0 && rows <= LUTRA_MAX_WEIGHTS / k;
}

bool lutra_valid_library(const struct lutra_shape *f, const int8_t *library) {
    int8_t least = 0;
    for (int i = 0; i < f->tables * (f->pair << f->bits); i++) {
        least = library[i] < least ? library[i] : least;
    }
    return least >= -127;
}

bool lutra_valid_codes(const struct lutra_shape *f, int64_t rows, int64_t k, const uint8_t *codes,
                       const uint16_t *selectors) {
    uint8_t bits = 0;
    uint16_t most = 0;
    for (int64_t i = 0; i < rows * k / f->pair; i++) {
        bits |= codes[i];
    }
    for (int64_t i = 0; i < rows * k / f->group; i++) {
        most = selectors[i] > most ? selectors[i] : most;
    }
    return bits >> f->bits == 0 && most < f->tables;
}

bool lutra_all_within(int64_t n, const float *x, float least, float most) {
    int outside = 0;
    for (int64_t i = 0; i < n; i++) {
        outside |= !(x[i] >= least) | !(x[i] <= most); // NaN is neither
    }
    return !outside;
}

bool lutra_valid_weights(int64_t n, const float *w, const float *importance, int64_t importances) {
    return lutra_all_within(n, w, -LUTRA_LARGEST, LUTRA_LARGEST) &&
           (!importance || lutra_all_within(importances, importance, LUTRA_LEAST, LUTRA_MOST));
}

int64_t lutra_find_bad(int64_t n, const float *w) {
    for (int64_t i = 0; i < n; i++) {
        if (!(fabsf(w[i]) <= LUTRA_LARGEST)) { // also NaN
            return i;
        }
    }
    return -1;
}
