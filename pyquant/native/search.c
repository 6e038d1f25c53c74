// The search for the best table of a group, and for the best scale of a super-block.
//
// Coarse: the values of the weights are rounded to the cells of a grid, and the error that every
// table makes on every cell is tabulated once per library. A group's error under all tables is then a sum of
// rows of that table. Fine: the few best candidates are computed exactly.
#include "quant.h"

#include "f16.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define LUTRA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LUTRA_CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum {
    LEVELS = 255,    // values of an entry, -127 to 127
    PAIR_CELLS = 32, // cells per axis of the grid of pairs
    LANES = 16,      // floats per vector
    COLUMNS = 64,    // tables that the coarse search sums at a time
    MAX_CANDIDATES = 32,
};

typedef float vec __attribute__((vector_size(4 * LANES)));

struct lutra_search {
    struct lutra_shape shape;
    int entries;          // per table, 2^bits
    int points;           // codes per group
    int lanes;            // points rounded up to a multiple of LANES
    int columns;          // tables rounded up to a multiple of COLUMNS
    int cells;            // per axis
    float *table;         // [tables][pair][entries]
    float *grid;          // [cells ^ pair][columns], aligned
    uint8_t cell[LEVELS]; // of a level
    float value[LEVELS];  // of a cell
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

// Weighted squared error of a group under one table. x and weight are [pair][lanes].
INLINE float table_error(int pair, int entries, int lanes, const float *table, const float *x,
                         const float *weight) {
    float sum[LANES] = {0};
    for (int v = 0; v < lanes; v += LANES) {
        float best[LANES];
        for (int l = 0; l < LANES; l++) {
            best[l] = 3e38f;
        }
        if (pair == 1) {
            for (int c = 0; c < entries; c++) {
                for (int l = 0; l < LANES; l++) {
                    float e = x[v + l] - table[c];
                    e = e * e;
                    best[l] = e < best[l] ? e : best[l];
                }
            }
            for (int l = 0; l < LANES; l++) {
                sum[l] += best[l] * weight[v + l];
            }
        } else {
            for (int c = 0; c < entries; c++) {
                for (int l = 0; l < LANES; l++) {
                    float e0 = x[v + l] - table[c];
                    float e1 = x[lanes + v + l] - table[entries + c];
                    float e = e0 * e0 * weight[v + l] + e1 * e1 * weight[lanes + v + l];
                    best[l] = e < best[l] ? e : best[l];
                }
            }
            for (int l = 0; l < LANES; l++) {
                sum[l] += best[l];
            }
        }
    }
    return sum_lanes(sum);
}

// The same, with the codes.
INLINE float table_codes(int pair, int entries, int lanes, int points, const float *table, const float *x,
                         const float *weight, uint8_t *codes) {
    float sum[LANES] = {0};
    for (int v = 0; v < lanes; v += LANES) {
        float best[LANES];
        int32_t code[LANES];
        for (int l = 0; l < LANES; l++) {
            best[l] = 3e38f;
            code[l] = 0;
        }
        for (int c = 0; c < entries; c++) {
            for (int l = 0; l < LANES; l++) {
                float e0 = x[v + l] - table[c];
                float e = e0 * e0 * weight[v + l];
                if (pair == 2) {
                    float e1 = x[lanes + v + l] - table[entries + c];
                    e = e + e1 * e1 * weight[lanes + v + l];
                }
                code[l] = e < best[l] ? c : code[l];
                best[l] = e < best[l] ? e : best[l];
            }
        }
        for (int l = 0; l < LANES; l++) {
            sum[l] += best[l];
        }
        for (int l = 0; l < LANES && v + l < points; l++) {
            codes[v + l] = (uint8_t)code[l];
        }
    }
    return sum_lanes(sum);
}

LUTRA_CLONES
float lutra_nearest(const struct lutra_shape *shape, const float *table, const float *x,
                    const float *importance, uint8_t *codes) {
    const int points = shape->group / shape->pair, lanes = (points + LANES - 1) / LANES * LANES;
    float padded[2][2 * LUTRA_MAX_GROUP] = {{0}};
    for (int i = 0; i < shape->pair; i++) {
        for (int j = 0; j < points; j++) {
            padded[0][i * lanes + j] = x[i * points + j];
            padded[1][i * lanes + j] = importance ? importance[i * points + j] : 1.0f;
        }
    }
    return table_codes(shape->pair, 1 << shape->bits, lanes, points, table, padded[0], padded[1], codes);
}

// ---- the grid ------------------------------------------------------------------------------

// Scalars have a cell per level. Pairs have PAIR_CELLS per axis, narrow where the entries are dense.
static void make_cells(struct lutra_search *s, const int8_t *library) {
    if (s->shape.pair == 1) {
        s->cells = LEVELS;
        for (int i = 0; i < LEVELS; i++) {
            s->cell[i] = (uint8_t)i;
            s->value[i] = (float)(i - 127);
        }
        return;
    }
    s->cells = PAIR_CELLS;
    int64_t count[LEVELS], total = 0;
    const int64_t n = (int64_t)s->shape.tables * s->shape.pair * s->entries;
    for (int i = 0; i < LEVELS; i++) {
        count[i] = n / LEVELS + 1;
    }
    for (int64_t i = 0; i < n; i++) {
        count[library[i] + 127] += 1;
    }
    for (int i = 0; i < LEVELS; i++) {
        total += count[i];
    }
    int64_t below = 0;
    int size[PAIR_CELLS] = {0};
    for (int i = 0; i < LEVELS; i++) {
        int cell = (int)((below + count[i] / 2) * PAIR_CELLS / total);
        s->cell[i] = (uint8_t)cell;
        s->value[cell] += (float)(i - 127);
        size[cell]++;
        below += count[i];
    }
    for (int i = 0; i < PAIR_CELLS; i++) {
        s->value[i] /= size[i] ? (float)size[i] : 1.0f;
    }
}

LUTRA_CLONES
static void make_grid(struct lutra_search *s) {
    const int pair = s->shape.pair, entries = s->entries, cells = pair == 1 ? s->cells : s->cells * s->cells;
    float x[2 * LANES], error[LANES];
    for (int first = 0; first < cells; first += LANES) {
        for (int l = 0; l < LANES; l++) {
            int cell = first + l < cells ? first + l : cells - 1;
            x[l] = s->value[pair == 1 ? cell : cell / s->cells];
            x[LANES + l] = s->value[cell % s->cells];
        }
        for (int t = 0; t < s->columns; t++) {
            const float *table = s->table + (size_t)t * pair * entries;
            for (int l = 0; l < LANES; l++) {
                error[l] = 1e30f;
            }
            for (int c = 0; t < s->shape.tables && c < entries; c++) {
                for (int l = 0; l < LANES; l++) {
                    float e0 = x[l] - table[c], e = e0 * e0;
                    if (pair == 2) {
                        float e1 = x[LANES + l] - table[entries + c];
                        e = e + e1 * e1;
                    }
                    error[l] = e < error[l] ? e : error[l];
                }
            }
            for (int l = 0; l < LANES && first + l < cells; l++) {
                s->grid[(size_t)(first + l) * s->columns + t] = error[l];
            }
        }
    }
}

struct lutra_search *lutra_search_new(const struct lutra_shape *shape, const int8_t *library) {
    struct lutra_search *s = calloc(1, sizeof *s);
    if (!s) {
        return NULL;
    }
    s->shape = *shape;
    s->entries = 1 << shape->bits;
    s->points = shape->group / shape->pair;
    s->lanes = (s->points + LANES - 1) / LANES * LANES;
    s->columns = (shape->tables + COLUMNS - 1) / COLUMNS * COLUMNS;
    make_cells(s, library);
    const size_t n = (size_t)shape->tables * shape->pair * s->entries;
    const size_t cells = shape->pair == 1 ? (size_t)s->cells : (size_t)s->cells * s->cells;
    s->table = malloc(n * sizeof(float));
    s->grid = aligned_alloc(64, cells * s->columns * sizeof(float));
    if (!s->table || !s->grid) {
        lutra_search_free(s);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        s->table[i] = library[i];
    }
    make_grid(s);
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

INLINE int level(float x) {
    x = x < -127.0f ? -127.0f : x > 127.0f ? 127.0f : x;
    return (int)(x + 127.5f);
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

// error[columns]: what every table costs this group, on the grid. A pair weighs the mean of its two.
INLINE void coarse(const struct lutra_search *s, const struct group *g, float *error) {
    const float *row[LUTRA_MAX_GROUP];
    float weight[LUTRA_MAX_GROUP];
    for (int j = 0; j < s->points; j++) {
        size_t cell = s->cell[level(g->x[j])];
        weight[j] = g->weight[j];
        if (s->shape.pair == 2) {
            cell = cell * s->cells + s->cell[level(g->x[s->lanes + j])];
            weight[j] = 0.5f * (weight[j] + g->weight[s->lanes + j]);
        }
        row[j] = s->grid + cell * s->columns;
    }
    for (int t = 0; t < s->columns; t += COLUMNS) {
        vec a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};
        for (int j = 0; j < s->points; j++) {
            const vec *r = (const vec *)(row[j] + t);
            a0 += r[0] * weight[j];
            a1 += r[1] * weight[j];
            a2 += r[2] * weight[j];
            a3 += r[3] * weight[j];
        }
        vec *e = (vec *)(error + t);
        e[0] = a0, e[1] = a1, e[2] = a2, e[3] = a3;
    }
}

// Smallest of the errors; its index in *best, the first of equals.
INLINE float smallest(const float *error, int n, int *best) {
    float lane[LANES];
    for (int l = 0; l < LANES; l++) {
        lane[l] = error[l];
    }
    for (int t = LANES; t < n; t += LANES) {
        for (int l = 0; l < LANES; l++) {
            lane[l] = error[t + l] < lane[l] ? error[t + l] : lane[l];
        }
    }
    float least = lane[0];
    for (int l = 1; l < LANES; l++) {
        least = lane[l] < least ? lane[l] : least;
    }
    int t = 0;
    while (error[t] != least) {
        t++;
    }
    *best = t;
    return least;
}

INLINE float best_table(const struct lutra_search *s, const struct group *g, int candidates, int *best) {
    const int pair = s->shape.pair, entries = s->entries, size = pair * entries;
    float least = 3e38f;
    *best = 0;
    if (candidates == 0) {
        for (int t = 0; t < s->shape.tables; t++) {
            float e = table_error(pair, entries, s->lanes, s->table + (size_t)t * size, g->x, g->weight);
            if (e < least) {
                least = e;
                *best = t;
            }
        }
        return least;
    }
    _Alignas(64) float error[LUTRA_MAX_TABLES];
    coarse(s, g, error);
    for (int i = 0; i < candidates; i++) {
        int t;
        if (smallest(error, s->columns, &t) > 1e30f || t >= s->shape.tables) {
            break;
        }
        error[t] = 3e38f;
        float e = table_error(pair, entries, s->lanes, s->table + (size_t)t * size, g->x, g->weight);
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
        int best;
        if (candidates == 0) {
            sum += best_table(s, &g, 0, &best);
        } else {
            _Alignas(64) float error[LUTRA_MAX_TABLES];
            coarse(s, &g, error);
            sum += smallest(error, s->columns, &best) + clipping(s, &g);
        }
    }
    return sum * d * d;
}

LUTRA_CLONES
void lutra_search_block(const struct lutra_search *s, const float *w, const float *importance, bool scales,
                        int candidates, uint16_t *d16, uint16_t *selectors, uint8_t *codes, float *cost) {
    const int group = s->shape.group, groups = s->shape.sb / group, points = s->points, lanes = s->lanes;
    const int pair = s->shape.pair, entries = s->entries;
    float amax = 0.0f;
    for (int i = 0; i < s->shape.sb; i++) {
        float a = w[i] < 0.0f ? -w[i] : w[i];
        amax = a > amax ? a : amax;
    }
    uint16_t best_d = lutra_f16(amax / 127.0f);
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
            best_table(s, &g, candidates, &best);
            const float *table = s->table + (size_t)best * pair * entries;
            float e = table_codes(pair, entries, lanes, points, table, g.x, g.weight, code);
            if (pass == 0) {
                for (int a = 0; a < pair; a++) {
                    for (int j = 0; j < points; j++) {
                        float q = table[a * entries + code[j]];
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
