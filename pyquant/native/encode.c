// SPDX-License-Identifier: MIT
#include "quant.h"

#include <stdlib.h>

struct encode {
    const struct lutra_search *search;
    const struct lutra_shape *shape;
    int64_t k;
    const float *w, *importance;
    int candidates;
    uint8_t *codes;
    uint16_t *selectors, *d;
    double *error; // per row
};

static void encode_row(void *context, int64_t row) {
    const struct encode *e = context;
    const struct lutra_shape *f = e->shape;
    const int groups = f->sb / f->group;
    double sum = 0.0;
    float *cost = malloc(groups * sizeof *cost);
    if (!cost) {
        e->error[row] = -1.0;
        return;
    }
    for (int64_t i = 0; i < e->k / f->sb; i++) {
        const int64_t block = row * (e->k / f->sb) + i;
        e->d[block] = 0;
        lutra_search_block(e->search, e->w + block * f->sb, e->importance ? e->importance + i * f->sb : NULL,
                           true, e->candidates, &e->d[block], e->selectors + block * groups,
                           e->codes + block * f->sb / f->pair, cost);
        for (int g = 0; g < groups; g++) {
            sum += cost[g];
        }
    }
    free(cost);
    e->error[row] = sum;
}

enum lutra_status lutra_encode(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                               const float *importance, const int8_t *library, int candidates, int threads,
                               uint8_t *codes, uint16_t *selectors, uint16_t *d, double *error) {
    if (!lutra_valid_matrix(shape, rows, k) || !lutra_valid_library(shape, library) || candidates < 0 ||
        !lutra_valid_weights(rows * k, w, importance, k)) {
        return LUTRA_REFUSED;
    }
    struct lutra_search *search = lutra_search_new(shape, library, importance != NULL);
    double *of_row = malloc((size_t)rows * sizeof *of_row);
    bool done = search && of_row;
    if (done) {
        struct encode e = {search, shape, k, w, importance, candidates, codes, selectors, d, of_row};
        lutra_parallel(rows, threads, encode_row, &e);
        *error = 0.0;
        for (int64_t i = 0; i < rows; i++) {
            done = done && of_row[i] >= 0.0;
            *error += of_row[i];
        }
    }
    free(of_row);
    lutra_search_free(search);
    return done ? LUTRA_DONE : LUTRA_NO_MEMORY;
}
