// Encoding against a Hessian: the error that counts is e H e^T, e = w - q over a whole row.
//
// Groups are solved one after the other; each is a small problem of its own, (c - q) S (c - q)^T with the
// group's target c. It is S = A D A^T with A unit upper triangular, so that the error of a group is a sum
// over its points, each weighed by its block of D once the errors of the points before it are added to its
// target:
//
//     sum over j of D_j v_j^2,   v_j = c_j - q_j + sum over i < j of (c_i - q_i) A_ij
//
// Every table is tried with that feedback, tables being the lanes of the vectors; then the codes of the best
// one are improved one at a time until none of them can be.
#include "quant.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define LUTRA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LUTRA_CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum {
    GROUP = LUTRA_GROUP,
    LANES = 64,    // tables at a time: four vectors, so that sums do not wait for each other
    LOOK = 8,      // weights after which tables that cannot win any more are left
    TILE = 16,     // rows that use a group's rows of the Hessian while they are in cache
    FINALISTS = 2, // tables whose codes are improved
    SWEEPS = 4,    // over the codes of a group, at most
};

#define FAR 1e9f // no weight is near such an entry

// Tables in the order of their size, so that those of a batch are alike.
struct tables {
    int pair, entries, n; // n: tables, rounded up to a multiple of LANES
    float *lane;          // [n / LANES][pair][entries][LANES]
    float *table;         // [n][pair][entries], in the library's order
    int *index;           // [n]: place in the library
    float *size;          // [n / LANES]: mean square of an entry
};

static void free_tables(struct tables *t) {
    free(t->lane);
    free(t->table);
    free(t->index);
    free(t->size);
}

struct sized {
    int64_t size;
    int index;
};

static int by_size(const void *a, const void *b) {
    const struct sized *x = a, *y = b;
    return x->size != y->size ? (x->size < y->size ? -1 : 1) : x->index - y->index;
}

static bool make_tables(const struct lutra_shape *shape, const int8_t *library, struct tables *t) {
    const int size = shape->pair << shape->bits;
    struct sized order[LUTRA_MAX_TABLES];
    t->pair = shape->pair;
    t->entries = 1 << shape->bits;
    t->n = (shape->tables + LANES - 1) / LANES * LANES;
    t->lane = malloc((size_t)t->n * size * sizeof *t->lane);
    t->table = malloc((size_t)t->n * size * sizeof *t->table);
    t->index = malloc((size_t)t->n * sizeof *t->index);
    t->size = calloc((size_t)t->n / LANES, sizeof *t->size);
    if (!t->lane || !t->table || !t->index || !t->size) {
        free_tables(t);
        return false;
    }
    for (int i = 0; i < t->n; i++) {
        order[i] = (struct sized){i < shape->tables ? 0 : INT64_MAX, i};
        for (int c = 0; c < size && i < shape->tables; c++) {
            const int x = library[(size_t)i * size + c];
            order[i].size += x * x;
        }
        for (int c = 0; c < size; c++) {
            t->table[(size_t)i * size + c] = i < shape->tables ? library[(size_t)i * size + c] : FAR;
        }
    }
    qsort(order, (size_t)t->n, sizeof *order, by_size);
    for (int i = 0; i < t->n; i++) {
        t->index[i] = order[i].index;
        for (int c = 0; c < size; c++) {
            const float x = t->table[(size_t)order[i].index * size + c];
            t->lane[((size_t)(i / LANES) * size + c) * LANES + i % LANES] = x;
            t->size[i / LANES] += x * x / (float)(size * LANES);
        }
    }
    return true;
}

// ---- one group -----------------------------------------------------------------------------

// error[LANES]: of the group under LANES tables; 3e38 if all of them exceed the limit.
INLINE void try_tables(int pair, int entries, const struct lutra_group_form *f, const float *c, float limit,
                       const float *restrict lane, float *restrict error) {
    float e[GROUP][LANES]; // c - q
    for (int l = 0; l < LANES; l++) {
        error[l] = 0.0f;
    }
    for (int j = 0; j < GROUP; j += pair) {
        float t[2][LANES]; // where the point wants to be
        if (j % LOOK == 0 && j) {
            float least = 3e38f;
            for (int l = 0; l < LANES; l++) {
                least = error[l] < least ? error[l] : least;
            }
            if (least > limit) {
                for (int l = 0; l < LANES; l++) {
                    error[l] = 3e38f;
                }
                return;
            }
        }
        for (int a = 0; a < pair; a++) {
            for (int l = 0; l < LANES; l++) {
                t[a][l] = c[j + a];
            }
            for (int i = 0; i < j; i++) {
                const float feedback = f->feedback[i][j + a];
                for (int l = 0; l < LANES; l++) {
                    t[a][l] += e[i][l] * feedback;
                }
            }
        }
        if (pair == 1) {
            float near[LANES];
            for (int l = 0; l < LANES; l++) {
                float best = t[0][l] - lane[l];
#pragma GCC unroll 16
                for (int k = 1; k < entries; k++) {
                    float v = t[0][l] - lane[k * LANES + l];
                    best = v * v < best * best ? v : best;
                }
                near[l] = best;
            }
            const float weight = f->weight[j][0];
            for (int l = 0; l < LANES; l++) {
                error[l] += near[l] * near[l] * weight;
                e[j][l] = c[j] - (t[0][l] - near[l]);
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

// Code of the point whose weights want to be at t; form is its block of D or of S.
INLINE int nearest_code(int pair, int entries, const float *table, const float *t, const float *row0,
                        const float *row1) {
    int code = 0;
    float least = 3e38f;
    for (int k = 0; k < entries; k++) {
        float v0 = t[0] - table[k], v = v0 * v0 * row0[0];
        if (pair == 2) {
            float v1 = t[1] - table[entries + k];
            v = v0 * (v0 * row0[0] + 2.0f * v1 * row0[1]) + v1 * v1 * row1[1];
        }
        code = v < least ? k : code;
        least = v < least ? v : least;
    }
    return code;
}

// Codes with feedback under one table, then each code alone, given the others.
INLINE float find_codes(int pair, int entries, const struct lutra_group_form *f, const float *c,
                        const float *table, uint8_t *codes) {
    float e[GROUP], g[GROUP];
    for (int j = 0; j < GROUP; j += pair) {
        float t[2];
        for (int a = 0; a < pair; a++) {
            t[a] = c[j + a];
            for (int i = 0; i < j; i++) {
                t[a] += e[i] * f->feedback[i][j + a];
            }
        }
        const int code = nearest_code(pair, entries, table, t, &f->weight[j][0], &f->weight[j + pair - 1][0]);
        codes[j / pair] = (uint8_t)code;
        for (int a = 0; a < pair; a++) {
            e[j + a] = c[j + a] - table[a * entries + code];
        }
    }
    for (int i = 0; i < GROUP; i++) {
        g[i] = 0.0f;
    }
    for (int j = 0; j < GROUP; j++) {
        for (int i = 0; i < GROUP; i++) {
            g[i] += e[j] * f->form[j][i];
        }
    }
    bool changed = true;
    for (int sweep = 0; sweep < SWEEPS && changed; sweep++) {
        changed = false;
        for (int j = 0; j < GROUP; j += pair) {
            // Without its own error the gradient is g - e S_jj; the point that cancels it is c + (g - e S_jj)
            // / S_jj.
            const float *s0 = f->form[j] + j;
            float t[2], block[2][2] = {{s0[0], 0.0f}, {0.0f, 0.0f}};
            if (pair == 1) {
                t[0] = c[j] - e[j] + g[j] / s0[0];
            } else {
                const float *s1 = f->form[j + 1] + j;
                const float det = s0[0] * s1[1] - s0[1] * s1[0];
                t[0] = c[j] - e[j] + (g[j] * s1[1] - g[j + 1] * s1[0]) / det;
                t[1] = c[j + 1] - e[j + 1] + (g[j + 1] * s0[0] - g[j] * s0[1]) / det;
                block[0][1] = s0[1];
                block[1][1] = s1[1];
            }
            const int code = nearest_code(pair, entries, table, t, block[0], block[1]);
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
        sum += e[i] * g[i];
    }
    return sum;
}

INLINE float solve(int pair, int entries, const struct tables *t, const struct lutra_group_form *f,
                   const float *c, uint16_t *selector, uint8_t *codes) {
    const int batches = t->n / LANES;
    const size_t size = (size_t)pair * entries;
    float error[LUTRA_MAX_TABLES], least = 3e38f, energy = 0.0f;
    for (int j = 0; j < GROUP; j++) {
        energy += c[j] * c[j] / GROUP;
    }
    // From the tables that are as large as the weights to both sides.
    int up = 0;
    while (up < batches - 1 && t->size[up] < energy) {
        up++;
    }
    int down = up - 1;
    for (int n = 0; n < batches; n++) {
        const bool go_up = down < 0 || (up < batches && n % 2 == 0);
        const int i = go_up ? up++ : down--;
        try_tables(pair, entries, f, c, least, t->lane + i * LANES * size, error + i * LANES);
        for (int l = 0; l < LANES; l++) {
            const float e = error[i * LANES + l];
            least = e < least ? e : least;
        }
    }
    least = 3e38f;
    for (int n = 0; n < FINALISTS; n++) {
        int best = 0;
        for (int i = 1; i < t->n; i++) {
            best = error[i] < error[best] ? i : best;
        }
        if (error[best] >= 3e38f) {
            break;
        }
        error[best] = 3e38f;
        uint8_t mine[GROUP];
        const int table = t->index[best];
        float e = find_codes(pair, entries, f, c, t->table + table * size, mine);
        if (e < least) {
            least = e;
            *selector = (uint16_t)table;
            memcpy(codes, mine, GROUP / pair);
        }
    }
    return least;
}

// One call per member of the family: its numbers are constants where loops over entries are unrolled.
LUTRA_CLONES
static float solve_group(const struct tables *t, const struct lutra_group_form *f, const float *c,
                         uint16_t *selector, uint8_t *codes) {
    if (t->pair == 2) {
        return t->entries == 16 ? solve(2, 16, t, f, c, selector, codes)
                                : solve(2, t->entries, t, f, c, selector, codes);
    }
    if (t->entries != 8 && t->entries != 16) {
        return solve(1, t->entries, t, f, c, selector, codes);
    }
    return t->entries == 8 ? solve(1, 8, t, f, c, selector, codes) : solve(1, 16, t, f, c, selector, codes);
}

// to[k] += x[GROUP] * m[GROUP][k]
LUTRA_CLONES
static void add_rows(int64_t k, const float *x, const float *m, int64_t stride, float *to) {
    for (int i = 0; i < GROUP; i += 4) {
        const float *m0 = m + i * stride, *m1 = m0 + stride, *m2 = m1 + stride, *m3 = m2 + stride;
        const float x0 = x[i], x1 = x[i + 1], x2 = x[i + 2], x3 = x[i + 3];
        for (int64_t c = 0; c < k; c++) {
            to[c] += (x0 * m0[c] + x1 * m1[c]) + (x2 * m2[c] + x3 * m3[c]);
        }
    }
}

// ---- rows ----------------------------------------------------------------------------------

struct feedback {
    struct tables tables;
    const struct lutra_group_form *forms;
    int64_t rows, k;
    const float *w, *coupling, *d;
    bool again;
    uint8_t *codes;
    uint16_t *selectors;
    atomic_bool failed;
};

static void look_up(const struct tables *t, uint16_t selector, const uint8_t *codes, float d, float *q) {
    const float *table = t->table + (size_t)selector * t->pair * t->entries;
    for (int j = 0; j < GROUP; j++) {
        q[j] = d * table[j % t->pair * t->entries + codes[j / t->pair]];
    }
}

static void encode_tile(void *context, int64_t tile) {
    struct feedback *p = context;
    const int64_t k = p->k, groups = k / GROUP, first = tile * TILE;
    const int rows = (int)(p->rows - first < TILE ? p->rows - first : TILE), points = GROUP / p->tables.pair;
    float *state =
        calloc((size_t)TILE * k, sizeof *state); // of a row: what other groups' errors do to a group
    if (!state) {
        p->failed = true;
        return;
    }
    if (p->again) {
        for (int64_t g = 0; g < groups; g++) {
            for (int r = 0; r < rows; r++) {
                const int64_t row = first + r, at = row * groups + g;
                float q[GROUP];
                look_up(&p->tables, p->selectors[at], p->codes + at * points, p->d[at], q);
                for (int j = 0; j < GROUP; j++) {
                    q[j] = p->w[row * k + g * GROUP + j] - q[j];
                }
                add_rows(k, q, p->coupling + g * GROUP * k, k, state + r * k);
            }
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        const struct lutra_group_form *f = &p->forms[g];
        for (int r = 0; r < rows; r++) {
            const int64_t row = first + r, at = row * groups + g;
            const float *w = p->w + row * k + g * GROUP, d = p->d[at], inverse = d > 0.0f ? 1.0f / d : 0.0f;
            uint8_t *codes = p->codes + at * points, code[GROUP];
            uint16_t selector;
            float c[GROUP] = {0}, before[GROUP], after[GROUP], old = 3e38f;
            add_rows(GROUP, state + r * k + g * GROUP, &f->inverse[0][0], GROUP, c);
            if (p->again) {
                look_up(&p->tables, p->selectors[at], codes, d, before);
                old = 0.0f;
                for (int j = 0; j < GROUP; j++) {
                    old += c[j] * state[r * k + g * GROUP + j];
                }
            } else {
                memcpy(before, w, sizeof before);
            }
            for (int j = 0; j < GROUP; j++) {
                c[j] = (c[j] + before[j]) * inverse;
            }
            float error = solve_group(&p->tables, f, c, &selector, code) * d * d;
            if (d > 0.0f && p->again && error >= old) {
                continue;
            }
            p->selectors[at] = selector;
            memcpy(codes, code, points);
            look_up(&p->tables, selector, code, d, after);
            for (int j = 0; j < GROUP; j++) {
                after[j] = before[j] - after[j]; // a group that is new had no error before
            }
            const int64_t from = p->again ? 0 : (g + 1) * GROUP;
            add_rows(k - from, after, p->coupling + g * GROUP * k + from, k, state + r * k + from);
        }
    }
    free(state);
}

bool lutra_feedback(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                    const struct lutra_group_form *forms, const float *coupling, const int8_t *library,
                    const float *d, bool again, int threads, uint8_t *codes, uint16_t *selectors) {
    struct feedback p = {.forms = forms,
                         .rows = rows,
                         .k = k,
                         .w = w,
                         .coupling = coupling,
                         .d = d,
                         .again = again,
                         .codes = codes,
                         .selectors = selectors};
    if (!make_tables(shape, library, &p.tables)) {
        return false;
    }
    lutra_parallel((rows + TILE - 1) / TILE, threads, encode_tile, &p);
    free_tables(&p.tables);
    return !p.failed;
}
