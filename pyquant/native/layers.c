// SPDX-License-Identifier: MIT
// The second layer of codes: what it adds to the first, under the selectors and scales that the first has.
//
// Its tables are k-means problems of their own: which weights a table serves is settled. They grow from one
// point by halves, each point splitting along its wider side, so that nothing is left to chance.
#include "quant.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

enum {
    STEPS = 5,    // of k-means after a split,
    SETTLE = 25,  // and with all points, at most
    ROUNDED = 10, // steps with entries of int8, at most
};

struct layer {
    const struct lutra_shape *shape;
    int64_t rows, k;
    const float *w, *importance;
    int64_t stride; // of importance, from row to row
    const int8_t *first;
    const uint16_t *selectors, *d;
    const int8_t *library;
    uint8_t *codes;
    double *error; // per row
    int8_t *learned;
    int64_t *start, *member; // groups in the order of their tables, where each table's begin
    atomic_bool failed;
};

// A code as it is to be learned or chosen: the weights that it stands for, in units of d.
struct point {
    float x[2], weight[2];
    int first[2]; // layer one's entries
};

static struct point load_point(const struct layer *l, int64_t group, int j) {
    const int pair = l->shape->pair, points = l->shape->group / pair;
    const int64_t at = group * l->shape->group, row = at / l->k;
    const float d = lutra_f16_to_f32(l->d[at / l->shape->sb]), scale = d > 0.0f ? 1.0f / d : 0.0f;
    struct point p = {{0}, {0}, {0}};
    for (int a = 0; a < pair; a++) {
        const int64_t i = at + a * points + j;
        p.x[a] = l->w[i] * scale;
        p.weight[a] = d * d * (l->importance ? l->importance[row * l->stride + i % l->k] : 1.0f);
        p.first[a] = l->first[i];
    }
    return p;
}

// The nearest entry of those [pair][stride] whose sum with layer one's is an int8; the first of equals.
static int nearest_entry(int pair, int entries, int stride, const float *table, const struct point *p,
                         float *error) {
    int best = 0;
    *error = INFINITY;
    for (int c = 0; c < entries; c++) {
        float e = 0.0f;
        bool fits = true;
        for (int a = 0; a < pair; a++) {
            const float entry = table[a * stride + c], delta = p->x[a] - entry;
            fits = fits && fabsf((float)p->first[a] + entry) <= 127.0f;
            e += delta * delta * p->weight[a];
        }
        if (fits && e < *error) {
            *error = e;
            best = c;
        }
    }
    return best;
}

// ---- learning ------------------------------------------------------------------------------

// A step of k-means, entries [pair][stride] -> their centroids, to whole numbers if `rounded`. spread: of the
// weights around them, in every direction. Returns the error before.
static double move_entries(int pair, int entries, int stride, float *table, float (*spread)[2],
                           const struct point *points, int64_t n, bool rounded) {
    double sum[LUTRA_MAX_ENTRIES][2][3] = {{{0}}}, total = 0.0; // weight, value, square
    for (int64_t i = 0; i < n; i++) {
        float error;
        const int c = nearest_entry(pair, entries, stride, table, &points[i], &error);
        total += isfinite(error) ? error : 0.0;
        for (int a = 0; a < pair && isfinite(error); a++) {
            const double weight = points[i].weight[a], x = points[i].x[a];
            sum[c][a][0] += weight;
            sum[c][a][1] += weight * x;
            sum[c][a][2] += weight * x * x;
        }
    }
    for (int c = 0; c < entries; c++) {
        for (int a = 0; a < pair; a++) {
            const double *s = sum[c][a];
            if (s[0] > 0.0) {
                double mean = s[1] / s[0], square = s[2] / s[0] - mean * mean;
                mean = mean < -127.0 ? -127.0 : mean > 127.0 ? 127.0 : mean;
                table[a * stride + c] = (float)(rounded ? rint(mean) : mean);
                spread[c][a] = (float)sqrt(square > 0.0 ? square : 0.0);
            }
        }
    }
    return total;
}

static void learn_entries(const struct lutra_shape *f, const struct point *points, int64_t n, float *table) {
    const int stride = 1 << f->bits;
    float spread[LUTRA_MAX_ENTRIES][2] = {{0}};
    move_entries(f->pair, 1, stride, table, spread, points, n, false);
    for (int entries = 1; entries < stride; entries *= 2) {
        for (int c = 0; c < entries; c++) {
            const int wider = spread[c][1] > spread[c][0];
            for (int a = 0; a < f->pair; a++) {
                const float step = a == wider ? 0.8f * spread[c][a] : 0.0f;
                table[a * stride + entries + c] = table[a * stride + c] + step;
                table[a * stride + c] -= step;
            }
        }
        const int steps = 2 * entries < stride ? STEPS : SETTLE;
        double before = INFINITY;
        for (int i = 0; i < steps; i++) {
            double error = move_entries(f->pair, 2 * entries, stride, table, spread, points, n, false);
            if (error >= before * 0.9999) {
                break;
            }
            before = error;
        }
    }
    double before = INFINITY;
    for (int i = 0; i < ROUNDED; i++) {
        double error = move_entries(f->pair, stride, stride, table, spread, points, n, true);
        if (error >= before) {
            break;
        }
        before = error;
    }
}

static void learn_table(void *context, int64_t t) {
    struct layer *l = context;
    const int points = l->shape->group / l->shape->pair, size = l->shape->pair << l->shape->bits;
    const int64_t groups = l->start[t + 1] - l->start[t];
    struct point *point = malloc((size_t)(groups * points + 1) * sizeof *point);
    float table[2 * LUTRA_MAX_ENTRIES] = {0};
    if (!point) {
        l->failed = true;
        return;
    }
    for (int64_t i = 0; i < groups * points; i++) {
        point[i] = load_point(l, l->member[l->start[t] + i / points], (int)(i % points));
    }
    learn_entries(l->shape, point, groups * points, table);
    free(point);
    for (int i = 0; i < size; i++) {
        l->learned[t * size + i] = (int8_t)rintf(table[i]);
    }
}

static bool valid(const struct layer *l) {
    int8_t least = 0;
    uint16_t most = 0, largest = 0;
    if (!lutra_valid_matrix(l->shape, l->rows, l->k)) {
        return false;
    }
    for (int64_t i = 0; i < l->rows * l->k; i++) {
        least = l->first[i] < least ? l->first[i] : least;
    }
    for (int64_t i = 0; i < l->rows * l->k / l->shape->group; i++) {
        most = l->selectors[i] > most ? l->selectors[i] : most;
    }
    for (int64_t i = 0; i < l->rows * l->k / l->shape->sb; i++) {
        largest = l->d[i] > largest ? l->d[i] : largest;
    }
    return least >= -127 && most < l->shape->tables && largest < 0x7c00 &&
           lutra_valid_weights(l->rows * l->k, l->w, l->importance, (l->stride ? l->rows : 1) * l->k);
}

enum lutra_status lutra_layer_learn(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                                    const float *importance, const int8_t *first, const uint16_t *selectors,
                                    const uint16_t *d, int threads, int8_t *library) {
    struct layer l = {.shape = shape,
                      .rows = rows,
                      .k = k,
                      .w = w,
                      .importance = importance,
                      .stride = k,
                      .first = first,
                      .selectors = selectors,
                      .d = d,
                      .learned = library};
    if (!valid(&l)) {
        return LUTRA_REFUSED;
    }
    const int64_t groups = rows * k / shape->group;
    l.start = calloc((size_t)shape->tables + 2, sizeof *l.start);
    l.member = malloc((size_t)groups * sizeof *l.member);
    if (l.start && l.member) {
        // One further on than they are, so that filling in the members leaves them in place.
        int64_t *next = l.start + 1;
        for (int64_t i = 0; i < groups; i++) {
            l.start[selectors[i] + 2]++;
        }
        for (int t = 0; t < shape->tables; t++) {
            l.start[t + 2] += l.start[t + 1];
        }
        for (int64_t i = 0; i < groups; i++) {
            l.member[next[selectors[i]]++] = i;
        }
        lutra_parallel(shape->tables, threads, learn_table, &l);
    } else {
        l.failed = true;
    }
    free(l.start);
    free(l.member);
    return l.failed ? LUTRA_NO_MEMORY : LUTRA_DONE;
}

// ---- encoding ------------------------------------------------------------------------------

static void encode_row(void *context, int64_t row) {
    struct layer *l = context;
    const int pair = l->shape->pair, entries = 1 << l->shape->bits, points = l->shape->group / pair;
    const int64_t groups = l->k / l->shape->group;
    double sum = 0.0;
    for (int64_t g = row * groups; g < (row + 1) * groups; g++) {
        float table[2 * LUTRA_MAX_ENTRIES];
        for (int i = 0; i < pair * entries; i++) {
            table[i] = l->library[l->selectors[g] * pair * entries + i];
        }
        for (int j = 0; j < points; j++) {
            const struct point p = load_point(l, g, j);
            float error;
            l->codes[g * points + j] = (uint8_t)nearest_entry(pair, entries, entries, table, &p, &error);
            sum += error;
        }
    }
    l->error[row] = sum;
}

enum lutra_status lutra_layer_encode(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                                     const float *importance, const int8_t *first, const uint16_t *selectors,
                                     const uint16_t *d, const int8_t *library, int threads, uint8_t *codes,
                                     double *error) {
    struct layer l = {.shape = shape,
                      .rows = rows,
                      .k = k,
                      .w = w,
                      .importance = importance,
                      .first = first,
                      .selectors = selectors,
                      .d = d,
                      .library = library,
                      .codes = codes};
    if (!valid(&l) || !lutra_valid_library(shape, library)) {
        return LUTRA_REFUSED;
    }
    l.error = malloc((size_t)rows * sizeof *l.error);
    if (!l.error) {
        return LUTRA_NO_MEMORY;
    }
    lutra_parallel(rows, threads, encode_row, &l);
    *error = 0.0;
    for (int64_t i = 0; i < rows; i++) {
        *error += l.error[i];
    }
    free(l.error);
    return isfinite(*error) ? LUTRA_DONE : LUTRA_REFUSED; // an entry too far for all that there are to add
}
