// SPDX-License-Identifier: MIT
// Learning a library: k-means whose centroids are tables.
#include "quant.h"

#include <stdlib.h>
#include <string.h>

struct lutra_learner {
    struct lutra_shape shape;
    int64_t blocks;
    const float *w, *importance;
    uint16_t *d;        // [blocks]
    uint16_t *selector; // [groups]
    float *cost;        // [groups] weighted squared error
    int64_t *member;    // [groups] groups of this iteration, in the order of their tables
    int64_t *start;     // [tables + 1] where a table's members start
    double *total;      // [tables] error of a table's members
    double *sum;        // [tables][pair][entries][2] weighted values and weights of all iterations

    // of the current step
    struct lutra_search *search;
    int64_t first;
    bool scales;
    double memory;
    int candidates;
    int8_t *library;
};

void lutra_learner_free(struct lutra_learner *l) {
    if (l) {
        free(l->d);
        free(l->selector);
        free(l->cost);
        free(l->member);
        free(l->start);
        free(l->total);
        free(l->sum);
        free(l);
    }
}

enum lutra_status lutra_learner_new(const struct lutra_shape *shape, int64_t blocks, const float *w,
                                    const float *importance, struct lutra_learner **learner) {
    if (!lutra_valid_matrix(shape, blocks, shape->sb) ||
        !lutra_valid_weights(blocks * shape->sb, w, importance, blocks * shape->sb)) {
        return LUTRA_REFUSED;
    }
    struct lutra_learner *l = calloc(1, sizeof *l);
    if (!l) {
        return LUTRA_NO_MEMORY;
    }
    const size_t groups = (size_t)blocks * (shape->sb / shape->group);
    l->shape = *shape;
    l->blocks = blocks;
    l->w = w;
    l->importance = importance;
    l->d = calloc(blocks, sizeof *l->d);
    l->selector = malloc(groups * sizeof *l->selector);
    l->cost = malloc(groups * sizeof *l->cost);
    l->member = malloc(groups * sizeof *l->member);
    l->start = malloc((shape->tables + 1) * sizeof *l->start);
    l->total = malloc(shape->tables * sizeof *l->total);
    l->sum = calloc((size_t)shape->tables * (shape->pair << shape->bits) * 2, sizeof *l->sum);
    if (!l->sum || !l->d || !l->selector || !l->cost || !l->member || !l->start || !l->total) {
        lutra_learner_free(l);
        return LUTRA_NO_MEMORY;
    }
    *learner = l;
    return LUTRA_DONE;
}

static void assign_block(void *context, int64_t i) {
    const struct lutra_learner *l = context;
    const int64_t block = l->first + i;
    const int groups = l->shape.sb / l->shape.group;
    const int64_t at = block * l->shape.sb;
    lutra_search_block(l->search, l->w + at, l->importance ? l->importance + at : NULL, l->scales,
                       l->candidates, &l->d[block], l->selector + block * groups, NULL,
                       l->cost + block * groups);
}

// Groups in the order of their tables (a counting sort, so members stay in order of the sample).
static void sort_members(struct lutra_learner *l, int64_t first, int64_t groups) {
    const int tables = l->shape.tables;
    memset(l->start, 0, (tables + 1) * sizeof *l->start);
    for (int64_t i = first; i < first + groups; i++) {
        l->start[l->selector[i] + 1]++;
    }
    for (int t = 0; t < tables; t++) {
        l->start[t + 1] += l->start[t];
        l->total[t] = 0.0;
    }
    for (int64_t i = first; i < first + groups; i++) {
        l->member[l->start[l->selector[i]]++] = i;
        l->total[l->selector[i]] += l->cost[i];
    }
    for (int t = tables; t > 0; t--) {
        l->start[t] = l->start[t - 1];
    }
    l->start[0] = 0;
}

static int8_t entry_of(double x) {
    return (int8_t)(x < -127.0 ? -127 : x > 127.0 ? 127 : x < 0.0 ? (int)(x - 0.5) : (int)(x + 0.5));
}

// Moves one table to the centroids of its members.
static void move_table(void *context, int64_t t) {
    struct lutra_learner *l = context;
    const int pair = l->shape.pair, entries = 1 << l->shape.bits, group = l->shape.group;
    const int points = group / pair, groups = l->shape.sb / group;
    int8_t *entry = l->library + t * pair * entries;
    int8_t before[2 * LUTRA_MAX_ENTRIES];
    double (*sum)[2] = (double (*)[2])l->sum + t * pair * entries; // weighted value, weight
    float worst[2] = {0}, worst_error = -1.0f;
    memcpy(before, entry, pair * entries);
    for (int e = 0; e < pair * entries; e++) {
        sum[e][0] *= l->memory;
        sum[e][1] *= l->memory;
    }
    for (int64_t m = l->start[t]; m < l->start[t + 1]; m++) {
        const int64_t i = l->member[m];
        const float d = lutra_f16_to_f32(l->d[i / groups]), scale = d > 0.0f ? 1.0f / d : 0.0f;
        const float *importance = l->importance ? l->importance + i * group : NULL;
        float x[LUTRA_MAX_GROUP];
        uint8_t code[LUTRA_MAX_GROUP];
        for (int j = 0; j < group; j++) {
            x[j] = l->w[i * group + j] * scale;
        }
        lutra_nearest(&l->shape, before, x, importance, code);
        for (int j = 0; j < points; j++) {
            float error = 0.0f;
            for (int a = 0; a < pair; a++) {
                const int e = a * entries + code[j];
                const float weight = d * d * (importance ? importance[a * points + j] : 1.0f);
                const float delta = x[a * points + j] - (float)before[e];
                error += weight * delta * delta;
                sum[e][0] += (double)weight * x[a * points + j];
                sum[e][1] += (double)weight;
            }
            if (error > worst_error) {
                worst_error = error;
                for (int a = 0; a < pair; a++) {
                    worst[a] = x[a * points + j];
                }
            }
        }
    }
    bool seeded = false;
    for (int c = 0; c < entries; c++) {
        bool dead = true;
        for (int a = 0; a < pair; a++) {
            const int e = a * entries + c;
            if (sum[e][1] > 0.0) {
                dead = false;
                entry[e] = entry_of(sum[e][0] / sum[e][1]);
            }
        }
        // An entry that nobody uses goes where the table is worst, one in an iteration.
        if (dead && !seeded && worst_error > 0.0f) {
            seeded = true;
            for (int a = 0; a < pair; a++) {
                entry[a * entries + c] = entry_of(worst[a]);
            }
        }
    }
}

// Tables that hardly contribute (no members, or less than `revive` of the mean error) become copies of
// the tables with the largest error, a little apart: the two share its groups from the next iteration on.
static void revive_tables(struct lutra_learner *l, double revive) {
    const int tables = l->shape.tables, size = l->shape.pair << l->shape.bits;
    double mean = 0.0;
    for (int t = 0; t < tables; t++) {
        mean += l->total[t] / tables;
    }
    for (int t = 0; t < tables; t++) {
        const bool empty = l->start[t] == l->start[t + 1] && l->sum[t * size * 2 + 1] <= 0.0;
        if (!empty && l->total[t] >= revive * mean) {
            continue;
        }
        int worst = 0;
        for (int i = 1; i < tables; i++) {
            worst = l->total[i] > l->total[worst] ? i : worst;
        }
        for (int i = 0; i < size; i++) {
            double x = l->library[worst * size + i];
            l->library[t * size + i] = entry_of(x * 1.06);
            l->library[worst * size + i] = entry_of(x * 0.94);
        }
        memset(l->sum + 2 * t * size, 0, 2 * size * sizeof *l->sum);
        memset(l->sum + 2 * worst * size, 0, 2 * size * sizeof *l->sum);
        l->total[worst] *= 0.5;
        l->total[t] = l->total[worst];
    }
}

enum lutra_status lutra_learner_step(struct lutra_learner *l, int64_t first, int64_t blocks, bool scales,
                                     double memory, double revive, int candidates, int threads,
                                     int8_t *library, double *error) {
    const int64_t per_block = l->shape.sb / l->shape.group;
    if (first < 0 || blocks < 1 || blocks > l->blocks || first > l->blocks - blocks || candidates < 0 ||
        !(memory >= 0.0 && memory <= 1.0) || !(revive >= 0.0 && revive <= 1.0) ||
        !lutra_valid_library(&l->shape, library)) {
        return LUTRA_REFUSED;
    }
    l->search = lutra_search_new(&l->shape, library, l->importance != NULL);
    if (!l->search) {
        return LUTRA_NO_MEMORY;
    }
    l->first = first;
    l->scales = scales;
    l->memory = memory;
    l->candidates = candidates;
    l->library = library;
    lutra_parallel(blocks, threads, assign_block, l);
    lutra_search_free(l->search);
    *error = 0.0;
    for (int64_t i = first * per_block; i < (first + blocks) * per_block; i++) {
        *error += l->cost[i];
    }
    sort_members(l, first * per_block, blocks * per_block);
    lutra_parallel(l->shape.tables, threads, move_table, l);
    revive_tables(l, revive);
    return LUTRA_DONE;
}
