// SPDX-License-Identifier: MIT
// The two linear maps between the entries of a library and the weights they stand for.
#include "quant.h"

enum lutra_status lutra_look_up(const struct lutra_shape *f, int64_t rows, int64_t k, const float *entries,
                                const uint8_t *codes, const uint16_t *selectors, const float *d, float *w) {
    if (!lutra_valid_matrix(f, rows, k) || !lutra_valid_codes(f, rows, k, codes, selectors)) {
        return LUTRA_REFUSED;
    }
    const int points = f->group / f->pair, size = f->pair << f->bits, groups = f->sb / f->group;
    for (int64_t g = 0; g < rows * k / f->group; g++) {
        const float *table = entries + (int64_t)selectors[g] * size, scale = d[g / groups];
        for (int a = 0; a < f->pair; a++) {
            for (int j = 0; j < points; j++) {
                w[g * f->group + a * points + j] = scale * table[(a << f->bits) + codes[g * points + j]];
            }
        }
    }
    return LUTRA_DONE;
}

enum lutra_status lutra_sum_entries(const struct lutra_shape *f, int64_t rows, int64_t k, const float *x,
                                    const uint8_t *codes, const uint16_t *selectors, const float *d,
                                    double *sums) {
    if (!lutra_valid_matrix(f, rows, k) || !lutra_valid_codes(f, rows, k, codes, selectors)) {
        return LUTRA_REFUSED;
    }
    const int points = f->group / f->pair, size = f->pair << f->bits, groups = f->sb / f->group;
    for (int64_t g = 0; g < rows * k / f->group; g++) {
        double *table = sums + (int64_t)selectors[g] * size;
        const float scale = d[g / groups];
        for (int a = 0; a < f->pair; a++) {
            for (int j = 0; j < points; j++) {
                table[(a << f->bits) + codes[g * points + j]] +=
                    (double)(scale * x[g * f->group + a * points + j]);
            }
        }
    }
    return LUTRA_DONE;
}
