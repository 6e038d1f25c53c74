// SPDX-License-Identifier: MIT
// Encoding against a Hessian: the error that counts is e H e^T, e = w - q over a whole row.
//
// Groups are solved one after the other; each is a small problem of its own, (c - q) S (c - q)^T with the
// group's target c. It is S = A D A^T with A unit upper triangular, so that the error of a group is a sum
// over its points, each weighed by its block of D once the errors of the points before it are added to its
// target:
//
//     sum over j of D_j v_j^2,   v_j = c_j - q_j + sum over i < j of (c_i - q_i) A_ij
//
// The tables that the coarse search (search.c) finds nearest to the target are tried that way, tables being
// the lanes of the vectors; then the codes of the best ones are improved one at a time until none of them can
// be.
#include "quant.h"

#include "clones.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    GROUP = LUTRA_GROUP,
    LANES = 32,     // tables at a time
    SHORTLIST = 32, // tables per group that are tried, a multiple of LANES; 256 bring 0.002 dB
    TILE = 16,      // rows, at most, that use a group's rows of the Hessian while they are in cache
    FEWEST = 4,     // of them, where there are more threads than tiles
    FINALISTS = 2,  // tables whose codes are improved
    SWEEPS = 4,     // over the codes of a group, at most
};

// ---- one group -----------------------------------------------------------------------------

// The tables that the coarse search finds best, the nearest first; those of equal error in the library's
// order.
INLINE void shortlist(const uint16_t *error, int tables, uint16_t *list) {
    uint32_t key[LUTRA_MAX_TABLES];
    for (int t = 0; t < tables; t++) {
        key[t] = (uint32_t)error[t] << 16 | (uint32_t)t;
    }
    for (int n = 0; n < SHORTLIST; n++) {
        uint32_t first = UINT32_MAX;
        for (int t = 0; t < tables; t++) {
            first = key[t] < first ? key[t] : first;
        }
        list[n] = first & 0xffff;
        key[list[n]] = UINT32_MAX;
    }
}

// error[LANES]: of the group under LANES tables, lane [pair][entries][LANES].
INLINE void try_tables(int pair, int entries, const struct lutra_group_form *f, const float *c,
                       const float *restrict lane, float *restrict error) {
    float e[GROUP][LANES]; // c - q
    for (int l = 0; l < LANES; l++) {
        error[l] = 0.0f;
    }
    for (int j = 0; j < GROUP; j += pair) {
        float t[2][LANES]; // where the point wants to be
        for (int a = 0; a < pair; a++) {
            float odd[LANES] = {0}; // two sums, so that they wait less for each other
            for (int l = 0; l < LANES; l++) {
                t[a][l] = c[j + a];
            }
            for (int i = 0; i + 1 < j; i += 2) {
                const float f0 = f->factor[i][j + a], f1 = f->factor[i + 1][j + a];
                for (int l = 0; l < LANES; l++) {
                    t[a][l] += e[i][l] * f0;
                    odd[l] += e[i + 1][l] * f1;
                }
            }
            const float last = j % 2 ? f->factor[j - 1][j + a] : 0.0f;
            for (int l = 0; l < LANES; l++) {
                t[a][l] += odd[l] + (j % 2 ? e[j - 1][l] * last : 0.0f);
            }
        }
        if (pair == 1) {
            const float weight = f->weight[j][0];
            for (int l = 0; l < LANES; l++) {
                float best = t[0][l] - lane[l];
#pragma GCC unroll 16
                for (int k = 1; k < entries; k++) {
                    float v = t[0][l] - lane[k * LANES + l];
                    best = v * v < best * best ? v : best;
                }
                error[l] += best * best * weight;
                e[j][l] = c[j] - (t[0][l] - best);
            }
        } else {
            const float w0 = f->weight[j][0], w01 = 2.0f * f->weight[j][1], w1 = f->weight[j + 1][1];
            const float *lane1 = lane + entries * LANES;
            for (int l = 0; l < LANES; l++) {
                float least = 3e38f, v0 = 0.0f, v1 = 0.0f;
#pragma GCC unroll 16
                for (int k = 0; k < entries; k++) {
                    float x0 = t[0][l] - lane[k * LANES + l], x1 = t[1][l] - lane1[k * LANES + l];
                    float v = x0 * (x0 * w0 + x1 * w01) + x1 * x1 * w1;
                    v0 = v < least ? x0 : v0;
                    v1 = v < least ? x1 : v1;
                    least = v < least ? v : least;
                }
                error[l] += least;
                e[j][l] = c[j] - (t[0][l] - v0);
                e[j + 1][l] = c[j + 1] - (t[1][l] - v1);
            }
        }
    }
}

// Code of the point whose weights want to be at t; the rows of its block of D or of S. Errors are compared as
// integers whose last bits are the code: a minimum of lanes, and the first of equals. first, unless NULL:
// entries of layer one, with which the point's must add up to an int8.
INLINE int nearest_code(int pair, int entries, const float *table, const float *t, const int8_t *first,
                        const float *row0, const float *row1) {
    int32_t least = INT32_MAX;
    for (int k = 0; k < entries; k++) {
        float v0 = t[0] - table[k], v = v0 * v0 * row0[0];
        if (pair == 2) {
            float v1 = t[1] - table[entries + k];
            v = v0 * (v0 * row0[0] + 2.0f * v1 * row0[1]) + v1 * v1 * row1[1];
            v = v > 0.0f ? v : 0.0f; // rounding must not make it negative
        }
        int32_t key;
        memcpy(&key, &v, sizeof key);
        key = (key & -entries) | k;
        for (int a = 0; first && a < pair; a++) {
            float sum = (float)first[a] + table[a * entries + k];
            key = sum < -127.0f || sum > 127.0f ? INT32_MAX : key;
        }
        least = key < least ? key : least;
    }
    return least & (entries - 1);
}

// Codes one after the other under one table, then each code alone, given the others.
INLINE float find_codes(int pair, int entries, const struct lutra_group_form *f, const float *c,
                        const int8_t *first, const float *table, uint8_t *codes) {
    float e[GROUP], t[GROUP], g[GROUP] = {0};
    memcpy(t, c, sizeof t);
    for (int j = 0; j < GROUP; j += pair) {
        const int code = nearest_code(pair, entries, table, t + j, first ? first + j : NULL, &f->weight[j][0],
                                      &f->weight[j + pair - 1][0]);
        codes[j / pair] = (uint8_t)code;
        for (int a = 0; a < pair; a++) {
            e[j + a] = c[j + a] - table[a * entries + code];
            for (int i = 0; i < GROUP; i++) { // A is upper triangular: what is behind does not change
                t[i] += e[j + a] * f->factor[j + a][i];
                g[i] += e[j + a] * f->form[j + a][i];
            }
        }
    }
    bool changed = true;
    for (int sweep = 0; sweep < SWEEPS && changed; sweep++) {
        changed = false;
        for (int j = 0; j < GROUP; j += pair) {
            // Without its own error the gradient is g - e S_jj; the point that cancels it is c + (g - e S_jj)
            // / S_jj.
            const float *s0 = f->form[j] + j;
            float to[2], block[2][2] = {{s0[0], 0.0f}, {0.0f, 0.0f}};
            if (pair == 1) {
                to[0] = c[j] - e[j] + g[j] / s0[0];
            } else {
                const float *s1 = f->form[j + 1] + j;
                const float det = s0[0] * s1[1] - s0[1] * s1[0];
                to[0] = c[j] - e[j] + (g[j] * s1[1] - g[j + 1] * s1[0]) / det;
                to[1] = c[j + 1] - e[j + 1] + (g[j + 1] * s0[0] - g[j] * s0[1]) / det;
                block[0][1] = s0[1];
                block[1][1] = s1[1];
            }
            const int code =
                nearest_code(pair, entries, table, to, first ? first + j : NULL, block[0], block[1]);
            if (code == codes[j / pair]) {
                continue;
            }
            changed = true;
            codes[j / pair] = (uint8_t)code;
            for (int a = 0; a < pair; a++) {
                const float now = c[j + a] - table[a * entries + code], step = now - e[j + a];
                e[j + a] = now;
                for (int i = 0; i < GROUP; i++) {
                    g[i] += step * f->form[j + a][i];
                }
            }
        }
    }
    float sum = 0.0f;
    for (int i = 0; i < GROUP; i++) {
        // c - e would not be the entry where c is large beside it.
        const float both = first ? (float)first[i] + table[i % pair * entries + codes[i / pair]] : 0.0f;
        sum += fabsf(both) <= 127.0f ? e[i] * g[i] : INFINITY; // of a table that has nothing to add to that
    }
    return sum;
}

// Returns the error; not less than 3e38, with the first table and codes, when there is no finite one.
INLINE float solve(int pair, int entries, const float *tables, const uint16_t *list,
                   const struct lutra_group_form *f, const float *c, uint16_t *selector, uint8_t *codes) {
    const size_t size = (size_t)pair * entries;
    float error[SHORTLIST], least = 3e38f;
    *selector = list[0];
    memset(codes, 0, GROUP / pair);
    for (int first = 0; first < SHORTLIST; first += LANES) {
        float lane[2 * LUTRA_MAX_ENTRIES * LANES];
        for (int l = 0; l < LANES; l++) {
            for (size_t i = 0; i < size; i++) {
                lane[i * LANES + l] = tables[list[first + l] * size + i];
            }
        }
        try_tables(pair, entries, f, c, lane, error + first);
    }
    for (int n = 0; n < FINALISTS; n++) {
        int best = 0;
        for (int i = 1; i < SHORTLIST; i++) {
            best = error[i] < error[best] ? i : best;
        }
        error[best] = 3e38f;
        uint8_t mine[GROUP];
        float e = find_codes(pair, entries, f, c, NULL, tables + list[best] * size, mine);
        if (e < least) {
            least = e;
            *selector = list[best];
            memcpy(codes, mine, GROUP / pair);
        }
    }
    return least;
}

// One call per member of the family: its numbers are constants where loops over entries are unrolled.
LUTRA_CLONES
static float solve_group(const struct lutra_shape *shape, const float *tables, const uint16_t *coarse,
                         const struct lutra_group_form *f, const float *c, uint16_t *selector,
                         uint8_t *codes) {
    uint16_t list[SHORTLIST];
    shortlist(coarse, shape->tables, list);
    if (shape->pair == 2) {
        return shape->bits == 4 ? solve(2, 16, tables, list, f, c, selector, codes)
                                : solve(2, 32, tables, list, f, c, selector, codes);
    }
    return shape->bits == 3 ? solve(1, 8, tables, list, f, c, selector, codes)
                            : solve(1, 16, tables, list, f, c, selector, codes);
}

// The codes of a second layer: of one table, so nothing is worth a call per member.
LUTRA_CLONES
static float solve_layer(const struct lutra_shape *shape, const float *table,
                         const struct lutra_group_form *f, const float *c, const int8_t *first,
                         uint8_t *codes) {
    return shape->pair == 2 ? find_codes(2, 1 << shape->bits, f, c, first, table, codes)
                            : find_codes(1, 1 << shape->bits, f, c, first, table, codes);
}

// to[row][k] += x[row][GROUP] * m[GROUP][k] for four rows, rows of m `stride` apart.
LUTRA_CLONES
static void add_rows(int64_t k, const float (*x)[GROUP], const float *restrict m, int64_t stride,
                     float *restrict t0, float *restrict t1, float *restrict t2, float *restrict t3) {
    for (int i = 0; i < GROUP; i += 4) {
        const float *m0 = m + i * stride, *m1 = m0 + stride, *m2 = m1 + stride, *m3 = m2 + stride;
        const float *x0 = x[0] + i, *x1 = x[1] + i, *x2 = x[2] + i, *x3 = x[3] + i;
        for (int64_t c = 0; c < k; c++) {
            t0[c] += (x0[0] * m0[c] + x0[1] * m1[c]) + (x0[2] * m2[c] + x0[3] * m3[c]);
            t1[c] += (x1[0] * m0[c] + x1[1] * m1[c]) + (x1[2] * m2[c] + x1[3] * m3[c]);
            t2[c] += (x2[0] * m0[c] + x2[1] * m1[c]) + (x2[2] * m2[c] + x2[3] * m3[c]);
            t3[c] += (x3[0] * m0[c] + x3[1] * m1[c]) + (x3[2] * m2[c] + x3[3] * m3[c]);
        }
    }
}

// ---- rows ----------------------------------------------------------------------------------

struct gptq {
    const struct lutra_shape *shape;
    const struct lutra_search *search;
    const float *tables; // the library
    const struct lutra_group_form *forms;
    int64_t rows, k;
    int tile; // rows
    const float *w, *coupling, *d;
    const int8_t *first; // layer one's entries, or NULL
    bool again;
    uint8_t *codes;
    uint16_t *selectors;
    double *loss;
    atomic_int status;
};

static void look_up(const struct gptq *p, uint16_t selector, const uint8_t *codes, float d, float *q) {
    const int pair = p->shape->pair, entries = 1 << p->shape->bits;
    const float *table = p->tables + (size_t)selector * pair * entries;
    for (int j = 0; j < GROUP; j++) {
        q[j] = d * table[j % pair * entries + codes[j / pair]];
    }
}

// The error under the best table and codes for target c.
static float search_group(const struct gptq *p, const struct lutra_group_form *f, const float *c,
                          uint16_t *selector, uint8_t *codes) {
    const int pair = p->shape->pair, points = GROUP / pair;
    float x[GROUP], weight[GROUP];
    uint16_t coarse[LUTRA_MAX_TABLES];
    for (int j = 0; j < GROUP; j++) {
        x[j % pair * points + j / pair] = c[j];
        weight[j % pair * points + j / pair] = f->weight[j][j % pair];
    }
    lutra_search_coarse(p->search, x, weight, coarse);
    return solve_group(p->shape, p->tables, coarse, f, c, selector, codes);
}

static void group_error(const struct gptq *p, int64_t row, int64_t g, float *e) {
    const int64_t at = row * (p->k / GROUP) + g;
    look_up(p, p->selectors[at], p->codes + at * (GROUP / p->shape->pair), p->d[at], e);
    for (int j = 0; j < GROUP; j++) {
        e[j] = p->w[at * GROUP + j] - e[j];
    }
}

// Encodes a group, state [GROUP] being what other errors do to it. change [GROUP]: of its errors; a group
// that is new had none before.
static void encode_group(struct gptq *p, int64_t row, int64_t g, const float *state, float *change) {
    const struct lutra_group_form *f = &p->forms[g];
    const int points = GROUP / p->shape->pair;
    const int64_t at = row * (p->k / GROUP) + g;
    const float d = p->d[at], inverse = d > 0.0f ? 1.0f / d : 0.0f;
    uint8_t *codes = p->codes + at * points, code[GROUP];
    uint16_t selector;
    float c[GROUP] = {0}, before[GROUP], old = 3e38f;
    for (int i = 0; i < GROUP; i++) {
        for (int j = 0; j < GROUP; j++) {
            c[j] += state[i] * f->inverse[i][j];
        }
    }
    if (p->again) {
        look_up(p, p->selectors[at], codes, d, before);
        old = 0.0f;
        for (int j = 0; j < GROUP; j++) {
            old += c[j] * state[j];
        }
    } else {
        memcpy(before, p->w + at * GROUP, sizeof before);
    }
    for (int j = 0; j < GROUP; j++) {
        c[j] = (c[j] + before[j]) * inverse;
        change[j] = 0.0f;
    }
    float error;
    if (p->first) {
        const float *table = p->tables + (size_t)p->selectors[at] * (p->shape->pair << p->shape->bits);
        selector = p->selectors[at];
        error = solve_layer(p->shape, table, f, c, p->first + at * GROUP, code) * d * d;
    } else {
        error = search_group(p, f, c, &selector, code) * d * d;
    }
    if (!(error < 3e38f)) {
        p->status = LUTRA_REFUSED;
    }
    if (d > 0.0f && p->again && error >= old) {
        return;
    }
    p->loss[row] += error;
    p->selectors[at] = selector;
    memcpy(codes, code, points);
    look_up(p, selector, code, d, change);
    for (int j = 0; j < GROUP; j++) {
        change[j] = before[j] - change[j];
    }
}

// What the changed errors of a tile's group do to the columns from `from` on.
static void spread(const struct gptq *p, int64_t g, int64_t from, const float (*change)[GROUP],
                   float *state) {
    const int64_t k = p->k;
    for (int r = 0; r < p->tile; r += 4) {
        float *to = state + r * k + from;
        add_rows(k - from, change + r, p->coupling + g * GROUP * k + from, k, to, to + k, to + 2 * k,
                 to + 3 * k);
    }
}

static void encode_tile(void *context, int64_t tile) {
    struct gptq *p = context;
    const int64_t k = p->k, groups = k / GROUP, first = tile * p->tile;
    const int rows = (int)(p->rows - first < p->tile ? p->rows - first : p->tile);
    float *state = calloc((size_t)p->tile * k, sizeof *state); // of a row: what other groups' errors do to it
    if (!state) {
        p->status = LUTRA_NO_MEMORY;
        return;
    }
    float change[TILE][GROUP] = {{0}}; // of a group's errors
    if (p->again) {
        for (int64_t g = 0; g < groups; g++) {
            for (int r = 0; r < rows; r++) {
                group_error(p, first + r, g, change[r]);
            }
            spread(p, g, 0, change, state);
        }
    }
    for (int r = 0; r < rows; r++) {
        p->loss[first + r] = 0.0;
    }
    for (int64_t g = 0; g < groups; g++) {
        for (int r = 0; r < rows; r++) {
            encode_group(p, first + r, g, state + r * k + g * GROUP, change[r]);
        }
        spread(p, g, p->again ? 0 : (g + 1) * GROUP, change, state);
    }
    for (int r = 0; r < rows && p->again; r++) { // the state is e H now
        p->loss[first + r] = 0.0;
        for (int64_t g = 0; g < groups; g++) {
            float e[GROUP];
            group_error(p, first + r, g, e);
            for (int j = 0; j < GROUP; j++) {
                p->loss[first + r] += (double)(e[j] * state[r * k + g * GROUP + j]);
            }
        }
    }
    free(state);
}

// Finite, and what the coarse search weighs by within its bounds.
static bool valid_forms(int64_t n, int pair, const struct lutra_group_form *forms) {
    for (int64_t i = 0; i < n; i++) {
        for (int j = 0; j < GROUP; j++) {
            if (!lutra_all_within(1, &forms[i].weight[j][j % pair], LUTRA_LEAST, LUTRA_MOST)) {
                return false;
            }
        }
    }
    return lutra_all_within(n * (int64_t)(sizeof *forms / sizeof(float)), (const float *)forms, -FLT_MAX,
                            FLT_MAX);
}

// Entries, and selectors that exist.
static bool valid_first(const struct gptq *p) {
    for (int64_t i = 0; i < p->rows * p->k; i++) {
        if (p->first[i] < -127 || p->selectors[i / GROUP] >= p->shape->tables) {
            return false;
        }
    }
    return true;
}

static bool valid(const struct gptq *p) {
    const struct lutra_shape *f = p->shape;
    const int64_t groups = p->k / GROUP;
    const bool has_loops = f->pair == 2 ? f->bits == 4 || f->bits == 5 : f->bits == 3 || f->bits == 4;
    return f->group == GROUP && (p->first || (f->tables >= SHORTLIST && has_loops)) &&
           (!p->first || valid_first(p)) && lutra_valid_weights(p->rows * p->k, p->w, NULL, 0) &&
           valid_forms(groups, f->pair, p->forms) &&
           lutra_all_within(p->k * p->k, p->coupling, -FLT_MAX, FLT_MAX) &&
           lutra_all_within(p->rows * groups, p->d, 0.0f, 65504.0f) &&
           (!p->again || lutra_valid_codes(f, p->rows, p->k, p->codes, p->selectors));
}

enum lutra_status lutra_gptq(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                             const int8_t *first, const struct lutra_group_form *forms, const float *coupling,
                             const int8_t *library, const float *d, bool again, int threads, uint8_t *codes,
                             uint16_t *selectors, double *loss) {
    struct gptq p = {.shape = shape,
                     .forms = forms,
                     .rows = rows,
                     .k = k,
                     .w = w,
                     .first = first,
                     .coupling = coupling,
                     .d = d,
                     .again = again,
                     .codes = codes,
                     .selectors = selectors,
                     .loss = loss};
    if (!lutra_valid_matrix(shape, rows, k) || !valid(&p) || !lutra_valid_library(shape, library)) {
        return LUTRA_REFUSED;
    }
    const size_t size = (size_t)shape->tables * (shape->pair << shape->bits);
    struct lutra_search *search = first ? NULL : lutra_search_new(shape, library, true);
    float *tables = malloc(size * sizeof *tables);
    p.search = search;
    p.tables = tables;
    p.status = (search || first) && tables ? LUTRA_DONE : LUTRA_NO_MEMORY;
    if (p.status == LUTRA_DONE) {
        for (size_t i = 0; i < size; i++) {
            tables[i] = library[i];
        }
        p.tile = TILE;
        while (p.tile > FEWEST && rows <= (int64_t)p.tile / 2 * threads) {
            p.tile /= 2;
        }
        lutra_parallel((rows + p.tile - 1) / p.tile, threads, encode_tile, &p);
    }
    free(tables);
    lutra_search_free(search);
    return p.status;
}
