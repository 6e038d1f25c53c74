#include "quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

double lutra_encode(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                    const float *importance, const int8_t *library, int candidates, int threads,
                    uint8_t *codes, uint16_t *selectors, uint16_t *d) {
    struct lutra_search *search = lutra_search_new(shape, library, importance != NULL);
    double *error = malloc((size_t)rows * sizeof *error), sum = -1.0;
    if (search && error) {
        struct encode e = {search, shape, k, w, importance, candidates, codes, selectors, d, error};
        lutra_parallel(rows, threads, encode_row, &e);
        sum = 0.0;
        for (int64_t i = 0; i < rows; i++) {
            if (error[i] < 0.0) {
                sum = -1.0;
                break;
            }
            sum += error[i];
        }
    }
    free(error);
    lutra_search_free(search);
    return sum;
}

int64_t lutra_find_bad(int64_t n, const float *w, float limit) {
    for (int64_t i = 0; i < n; i++) {
        if (!(fabsf(w[i]) <= limit)) { // also NaN
            return i;
        }
    }
    return -1;
}
