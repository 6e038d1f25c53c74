// SPDX-License-Identifier: MIT
// The search for the best table of a group, and for the best scale of a super-block.
//
// Coarse: the values of the weights are rounded to the cells of a grid, and the error that every
// table makes on every cell is tabulated once per library. A group's error under all tables is then a sum of
// rows of that table. Fine: the few best candidates are computed exactly.
#include "quant.h"

#include "clones.h"
#include "f16.h"

#include <stdlib.h>
#include <string.h>

enum {
    LEVELS = 255,        // values of an entry, -127 to 127
    CELLS = 128,         // of the grid of single weights
    PAIR_CELLS = 32,     // per axis of the grid of pairs
    BLOCK = 8,           // entries at a time
    LANES = 16,          // of every vector
    COLUMNS = 8 * LANES, // tables that the coarse search sums at a time
    HEADROOM = 48,       // a weight's largest error on the grid, in typical errors
    UNITS = 128,         // a group's importances on the grid add up to about this
};

#define FAR 1e9f // no weight is near such an entry

typedef uint16_t vec __attribute__((vector_size(2 * LANES)));

struct lutra_search {
    struct lutra_shape shape;
    bool weighted;
    int stride;           // entries per table
    int points;           // codes per group
    int lanes;            // points rounded up to a multiple of LANES
    int columns;          // tables rounded up to a multiple of COLUMNS
    int cells;            // per axis
    float *table;         // [tables][pair][stride]
    uint16_t *grid;       // [cells ^ pair][columns]: error, in units of 1 / resolution
    float resolution;     // a group's error on the grid is at most 65535
    uint8_t cell[LEVELS]; // of a level
    float value[CELLS];   // of a cell
};

// ---- nearest codes -------------------------------------------------------------------------

// Sum of the lanes in a fixed tree.
INLINE float sum_lanes(const float *lane) {
    float s[LANES];
    memcpy(s, lane, sizeof s);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            s[i] += s[i + half];
        }
    }
    return s[0];
}

// error[lanes]: of the nearest entry; code[lanes], unless NULL: which one. x and weight are [pair][lanes],
// table is [pair][stride]. Lanes are the loop that vectorises, so what is inside it is unrolled.
INLINE void nearest(int pair, int stride, int lanes, const float *restrict table, const float *restrict x,
                    const float *restrict weight, float *restrict error, int32_t *restrict code) {
    for (int l = 0; l < lanes; l++) {
        error[l] = 3e38f;
    }
    for (int first = 0; first < stride; first += BLOCK) {
        for (int l = 0; l < lanes; l++) {
            float best = error[l];
            int32_t best_code = code ? code[l] : 0;
#pragma GCC unroll 8
            for (int c = first; c < first + BLOCK; c++) {
                float e0 = x[l] - table[c], e = e0 * e0 * weight[l];
                if (pair == 2) {
                    float e1 = x[lanes + l] - table[stride + c];
                    e += e1 * e1 * weight[lanes + l];
                }
                best_code = e < best ? c : best_code;
                best = e < best ? e : best;
            }
            error[l] = best;
            if (code) {
                code[l] = best_code;
            }
        }
    }
}

INLINE float sum_errors(const float *error, int lanes) {
    float sum[LANES] = {0};
    for (int v = 0; v < lanes; v += LANES) {
        for (int l = 0; l < LANES; l++) {
            sum[l] += error[v + l];
        }
    }
    return sum_lanes(sum);
}

// Weighted squared error of a group under one table.
INLINE float table_error(int pair, int stride, int lanes, const float *table, const float *x,
                         const float *weight) {
    float error[LUTRA_MAX_GROUP];
    if (pair == 1) {
        nearest(1, stride, lanes, table, x, weight, error, NULL);
    } else {
        nearest(2, stride, lanes, table, x, weight, error, NULL);
    }
    return sum_errors(error, lanes);
}

// The same, with the codes.
INLINE float table_codes(int pair, int stride, int lanes, int points, const float *table, const float *x,
                         const float *weight, uint8_t *codes) {
    float error[LUTRA_MAX_GROUP];
    int32_t code[LUTRA_MAX_GROUP] = {0};
    if (pair == 1) {
        nearest(1, stride, lanes, table, x, weight, error, code);
    } else {
        nearest(2, stride, lanes, table, x, weight, error, code);
    }
    for (int j = 0; j < points; j++) {
        codes[j] = (uint8_t)code[j];
    }
    return sum_errors(error, lanes);
}

// Entries of a table in memory, and the table; what is missing to a block is far away.
static int stride_of(const struct lutra_shape *shape) {
    return (1 << shape->bits) < BLOCK ? BLOCK : 1 << shape->bits;
}

static void load_table(const struct lutra_shape *shape, const int8_t *entry, float *table) {
    const int entries = 1 << shape->bits, stride = stride_of(shape);
    for (int a = 0; a < shape->pair; a++) {
        for (int c = 0; c < stride; c++) {
            table[a * stride + c] = c < entries ? entry[a * entries + c] : FAR;
        }
    }
}

LUTRA_CLONES
float lutra_nearest(const struct lutra_shape *shape, const int8_t *entry, const float *x,
                    const float *importance, uint8_t *codes) {
    const int points = shape->group / shape->pair, lanes = (points + LANES - 1) / LANES * LANES;
    float table[2 * LUTRA_MAX_ENTRIES], padded[2][2 * LUTRA_MAX_GROUP] = {{0}};
    load_table(shape, entry, table);
    for (int i = 0; i < shape->pair; i++) {
        for (int j = 0; j < points; j++) {
            padded[0][i * lanes + j] = x[i * points + j];
            padded[1][i * lanes + j] = importance ? importance[i * points + j] : 1.0f;
        }
    }
    return table_codes(shape->pair, stride_of(shape), lanes, points, table, padded[0], padded[1], codes);
}

// ---- the grid ------------------------------------------------------------------------------

// Cells are narrow where the entries are dense, and never empty of levels by much: a level counts
// as at least a part of an entry.
static void make_cells(struct lutra_search *s, const int8_t *library) {
    const int64_t n = (int64_t)s->shape.tables * (s->shape.pair << s->shape.bits);
    int64_t count[LEVELS], total = 0, below = 0;
    int size[CELLS] = {0};
    for (int i = 0; i < LEVELS; i++) {
        count[i] = n / LEVELS + 1;
    }
    for (int64_t i = 0; i < n; i++) {
        count[library[i] + 127]++;
    }
    for (int i = 0; i < LEVELS; i++) {
        total += count[i];
    }
    for (int i = 0; i < LEVELS; i++) {
        int cell = (int)((below + count[i] / 2) * s->cells / total);
        s->cell[i] = (uint8_t)cell;
        s->value[cell] += (float)(i - 127);
        size[cell]++;
        below += count[i];
    }
    for (int i = 0; i < s->cells; i++) {
        s->value[i] /= size[i] ? (float)size[i] : 1.0f;
    }
}

// The error of a weight that is typical for the library: a sixth of the squared distance between neighbours.
static float typical_error(const struct lutra_search *s) {
    const int pair = s->shape.pair, stride = s->stride, entries = 1 << s->shape.bits;
    double sum = 0.0;
    for (int t = 0; t < s->shape.tables; t++) {
        const float *table = s->table + (size_t)t * pair * stride;
        for (int a = 0; a < entries; a++) {
            float nearest = 3e38f;
            for (int b = 0; b < entries; b++) {
                float e0 = table[a] - table[b],
                      e1 = table[(pair - 1) * stride + a] - table[(pair - 1) * stride + b];
                float e = pair == 1 ? e0 * e0 : e0 * e0 + e1 * e1;
                nearest = b != a && e < nearest ? e : nearest;
            }
            sum += nearest;
        }
    }
    return (float)(sum / ((double)s->shape.tables * entries * 6)) + 0.05f;
}

LUTRA_CLONES
static void make_grid(struct lutra_search *s, const float *columns) {
    const int pair = s->shape.pair, stride = s->stride, cells = pair == 1 ? s->cells : s->cells * s->cells;
    const float limit = (float)(65535 / (s->weighted ? UNITS + s->points / 2 : s->points));
    s->resolution = limit / (HEADROOM * typical_error(s));
    for (int cell = 0; cell < cells; cell++) {
        const float x0 = s->value[pair == 1 ? cell : cell / s->cells], x1 = s->value[cell % s->cells];
        for (int first = 0; first < s->columns; first += COLUMNS) {
            float best[COLUMNS];
            for (int t = 0; t < COLUMNS; t++) {
                best[t] = limit / s->resolution;
            }
            for (int c = 0; c < stride; c++) {
                const float *t0 = columns + (size_t)c * s->columns + first;
                const float *t1 = columns + (size_t)(stride + c) * s->columns + first;
                for (int t = 0; t < COLUMNS; t++) {
                    float e = (x0 - t0[t]) * (x0 - t0[t]);
                    if (pair == 2) {
                        e += (x1 - t1[t]) * (x1 - t1[t]);
                    }
                    best[t] = e < best[t] ? e : best[t];
                }
            }
            uint16_t *out = s->grid + (size_t)cell * s->columns + first;
            for (int t = 0; t < COLUMNS; t++) {
                out[t] = (uint16_t)(int)(best[t] * s->resolution + 0.5f);
            }
        }
    }
}

struct lutra_search *lutra_search_new(const struct lutra_shape *shape, const int8_t *library, bool weighted) {
    struct lutra_search *s = calloc(1, sizeof *s);
    if (!s) {
        return NULL;
    }
    s->shape = *shape;
    s->weighted = weighted;
    s->stride = stride_of(shape);
    s->points = shape->group / shape->pair;
    s->lanes = (s->points + LANES - 1) / LANES * LANES;
    s->columns = (shape->tables + COLUMNS - 1) / COLUMNS * COLUMNS;
    s->cells = shape->pair == 1 ? CELLS : PAIR_CELLS;
    const size_t size = (size_t)shape->pair * s->stride, n = shape->tables * size;
    const size_t cells = shape->pair == 1 ? CELLS : PAIR_CELLS * PAIR_CELLS;
    float *columns = malloc(size * s->columns * sizeof *columns); // the tables, transposed
    s->table = malloc(n * sizeof *s->table);
    s->grid = aligned_alloc(64, cells * s->columns * sizeof *s->grid);
    if (!columns || !s->table || !s->grid) {
        free(columns);
        lutra_search_free(s);
        return NULL;
    }
    for (int t = 0; t < shape->tables; t++) {
        load_table(shape, library + (size_t)t * (shape->pair << shape->bits), s->table + t * size);
    }
    for (int t = 0; t < s->columns; t++) {
        for (size_t i = 0; i < size; i++) {
            columns[i * s->columns + t] = t < shape->tables ? s->table[t * size + i] : FAR;
        }
    }
    make_cells(s, library);
    make_grid(s, columns);
    free(columns);
    return s;
}

void lutra_search_free(struct lutra_search *s) {
    if (s) {
        free(s->table);
        free(s->grid);
        free(s);
    }
}

// ---- one group -----------------------------------------------------------------------------

// A group as the search reads it: [pair][lanes], padding lanes weigh nothing.
struct group {
    float x[2 * LUTRA_MAX_GROUP];
    float weight[2 * LUTRA_MAX_GROUP];
};

INLINE void load_group(const struct lutra_search *s, const float *w, const float *importance, float scale,
                       struct group *g) {
    for (int i = 0; i < s->shape.pair; i++) {
        float *x = g->x + i * s->lanes, *weight = g->weight + i * s->lanes;
        for (int j = 0; j < s->points; j++) {
            x[j] = w[i * s->points + j] * scale;
            weight[j] = importance ? importance[i * s->points + j] : 1.0f;
        }
        for (int j = s->points; j < s->lanes; j++) {
            x[j] = weight[j] = 0.0f;
        }
    }
}

// What no table can avoid: the error of the weights beyond the range of the entries.
INLINE float clipping(const struct lutra_search *s, const struct group *g) {
    float sum[LANES] = {0};
    for (int v = 0; v < s->shape.pair * s->lanes; v += LANES) {
        for (int l = 0; l < LANES; l++) {
            float x = g->x[v + l], over = x > 127.0f ? x - 127.0f : x < -127.0f ? x + 127.0f : 0.0f;
            sum[l] += over * over * g->weight[v + l];
        }
    }
    return sum_lanes(sum);
}

// error[columns]: what every table costs this group on the grid. Returns what one unit of it is worth. A
// pair weighs the mean of its two.
INLINE float coarse(const struct lutra_search *s, const struct group *g, uint16_t *error) {
    const uint16_t *row[LUTRA_MAX_GROUP];
    uint16_t units[LUTRA_MAX_GROUP];
    float total = 0.0f;
    int32_t level[2 * LUTRA_MAX_GROUP];
    for (int l = 0; l < s->shape.pair * s->lanes; l++) {
        float x = g->x[l];
        x = x > -127.0f ? x : -127.0f; // also NaN, which GPTQ makes of numbers too large
        x = x < 127.0f ? x : 127.0f;
        level[l] = (int32_t)(x + 127.5f);
    }
    for (int j = 0; j < s->points; j++) {
        uint32_t cell = s->cell[level[j]];
        if (s->shape.pair == 2) {
            cell = cell * PAIR_CELLS + s->cell[level[s->lanes + j]];
        }
        row[j] = s->grid + (size_t)(cell * (uint32_t)s->columns);
    }
    if (s->weighted) {
        float weight[LUTRA_MAX_GROUP];
        for (int j = 0; j < s->points; j++) {
            weight[j] = s->shape.pair == 1 ? g->weight[j] : 0.5f * (g->weight[j] + g->weight[s->lanes + j]);
            total += weight[j];
        }
        for (int j = 0; j < s->points; j++) {
            units[j] = (uint16_t)(int)(weight[j] * (UNITS / total) + 0.5f);
        }
    }
    for (int t = 0; t < s->columns; t += COLUMNS) {
        vec a[8] = {{0}};
        if (s->weighted) {
            for (int j = 0; j < s->points; j++) {
                const vec *r = (const vec *)(row[j] + t);
                for (int i = 0; i < 8; i++) {
                    a[i] += r[i] * units[j];
                }
            }
        } else {
            for (int j = 0; j < s->points; j++) {
                const vec *r = (const vec *)(row[j] + t);
                for (int i = 0; i < 8; i++) {
                    a[i] += r[i];
                }
            }
        }
        memcpy(error + t, a, sizeof a);
    }
    return s->weighted ? total / (UNITS * s->resolution) : 1.0f / s->resolution;
}

LUTRA_CLONES
void lutra_search_coarse(const struct lutra_search *s, const float *x, const float *weight, uint16_t *error) {
    struct group g;
    _Alignas(64) uint16_t columns[LUTRA_MAX_TABLES];
    load_group(s, x, weight, 1.0f, &g);
    coarse(s, &g, columns);
    memcpy(error, columns, (size_t)s->shape.tables * sizeof *error);
}

INLINE int smallest(const uint16_t *error, int n) {
    uint16_t least = 65535;
    for (int t = 0; t < n; t++) {
        least = error[t] < least ? error[t] : least;
    }
    return least;
}

INLINE float best_table(const struct lutra_search *s, const struct group *g, int candidates, int *best) {
    const int pair = s->shape.pair, stride = s->stride, size = pair * stride;
    float least = 3e38f;
    *best = 0;
    if (candidates == 0) {
        for (int t = 0; t < s->shape.tables; t++) {
            float e = table_error(pair, stride, s->lanes, s->table + (size_t)t * size, g->x, g->weight);
            if (e < least) {
                least = e;
                *best = t;
            }
        }
        return least;
    }
    _Alignas(64) uint16_t error[LUTRA_MAX_TABLES];
    coarse(s, g, error);
    uint32_t key[LUTRA_MAX_TABLES]; // error, then table: the smallest is the best, the first of equals
    for (int t = 0; t < s->columns; t++) {
        key[t] = (uint32_t)error[t] << 16 | (uint32_t)t;
    }
    for (int i = 0; i < candidates && i < s->shape.tables; i++) {
        uint32_t first = UINT32_MAX;
        for (int t = 0; t < s->columns; t++) {
            first = key[t] < first ? key[t] : first;
        }
        int t = first & 0xffff;
        key[t] = UINT32_MAX;
        if (t >= s->shape.tables) {
            continue;
        }
        float e = table_error(pair, stride, s->lanes, s->table + (size_t)t * size, g->x, g->weight);
        if (e < least || (e == least && t < *best)) {
            least = e;
            *best = t;
        }
    }
    return least;
}

// ---- one super-block -----------------------------------------------------------------------

// Scales that are tried, as multiples of amax / 127.
static const float factor[] = {1.0f, 0.92f, 0.84f, 0.76f, 0.68f, 0.60f, 0.52f, 1.08f, 1.16f, 1.24f};

INLINE float search_error(const struct lutra_search *s, const float *w, const float *importance,
                          int candidates, float d) {
    const int groups = s->shape.sb / s->shape.group;
    const float scale = 1.0f / d;
    float sum = 0.0f;
    for (int i = 0; i < groups; i++) {
        struct group g;
        load_group(s, w + i * s->shape.group, importance ? importance + i * s->shape.group : NULL, scale, &g);
        if (candidates == 0) {
            int best;
            sum += best_table(s, &g, 0, &best);
        } else {
            _Alignas(64) uint16_t error[LUTRA_MAX_TABLES];
            float unit = coarse(s, &g, error);
            sum += (float)smallest(error, s->columns) * unit + clipping(s, &g);
        }
    }
    return sum * d * d;
}

LUTRA_CLONES
void lutra_search_block(const struct lutra_search *s, const float *w, const float *importance, bool scales,
                        int candidates, uint16_t *d16, uint16_t *selectors, uint8_t *codes, float *cost) {
    const int group = s->shape.group, groups = s->shape.sb / group, points = s->points, lanes = s->lanes;
    const int pair = s->shape.pair, stride = s->stride;
    float amax = 0.0f;
    for (int i = 0; i < s->shape.sb; i++) {
        float a = w[i] < 0.0f ? -w[i] : w[i];
        amax = a > amax ? a : amax;
    }
    uint16_t best_d = lutra_f16(amax / 127.0f);
    if (best_d == 0 && amax > 0x1p-25f) {
        best_d = 1; // the smallest half still reaches some of the weights
    }
    if (scales && best_d) {
        float least = 3e38f;
        for (size_t i = 0; i < sizeof factor / sizeof *factor; i++) {
            uint16_t h = lutra_f16(amax / 127.0f * factor[i]);
            float e = h ? search_error(s, w, importance, candidates, lutra_f16_to_f32(h)) : 3e38f;
            if (e < least) {
                least = e;
                best_d = h;
            }
        }
    } else if (*d16) {
        best_d = *d16;
    }
    // Selectors at this scale, then the scale that is best for the codes, then selectors and codes again.
    float dd = lutra_f16_to_f32(best_d);
    for (int pass = scales ? 0 : 1; pass < 2; pass++) {
        float num[LANES] = {0}, den[LANES] = {0};
        const float scale = dd > 0.0f ? 1.0f / dd : 0.0f;
        for (int i = 0; i < groups; i++) {
            struct group g;
            uint8_t code[LUTRA_MAX_GROUP];
            int best;
            load_group(s, w + i * group, importance ? importance + i * group : NULL, scale, &g);
            float e = best_table(s, &g, candidates, &best);
            const float *table = s->table + (size_t)best * pair * stride;
            if (pass == 0 || codes) {
                table_codes(pair, stride, lanes, points, table, g.x, g.weight, code);
            }
            if (pass == 0) {
                for (int a = 0; a < pair; a++) {
                    for (int j = 0; j < points; j++) {
                        float q = table[a * stride + code[j]];
                        num[j % LANES] += q * g.x[a * lanes + j] * g.weight[a * lanes + j];
                        den[j % LANES] += q * q * g.weight[a * lanes + j];
                    }
                }
                continue;
            }
            selectors[i] = (uint16_t)best;
            cost[i] = e * dd * dd;
            if (codes) {
                memcpy(codes + (size_t)i * points, code, points);
            }
        }
        if (pass == 0) {
            float n = sum_lanes(num), m = sum_lanes(den);
            if (n > 0.0f && m > 0.0f) {
                best_d = lutra_f16(dd * (n / m));
                dd = lutra_f16_to_f32(best_d);
            }
        }
    }
    *d16 = best_d;
}
