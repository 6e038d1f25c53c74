// SPDX-License-Identifier: MIT
// Encoding by full search: the specification of "nearest". pyquant has the fast one.
#include "../include/lutra_ref.h"

#include <math.h>

// The code of one table nearest to the weights w[0], w[16] (a pair) or w[0]; adds its error to *error.
static uint8_t nearest_code(const struct lutra_cb_format *f, const int8_t *table, float d, const float *w,
                            const float *importance, float *error) {
    float best = INFINITY;
    int best_code = 0;
    for (int code = 0; code < 1 << f->bits; code++) {
        float e = 0;
        for (int i = 0; i < f->pair; i++) {
            const float delta = w[i * LUTRA_LANE] - d * table[(i << f->bits) + code];
            e += (importance ? importance[i * LUTRA_LANE] : 1) * delta * delta;
        }
        if (e < best) {
            best = e;
            best_code = code;
        }
    }
    *error += best;
    return (uint8_t)best_code;
}

void lutra_cb_encode(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const float *w,
                     const float *importance, const uint16_t *d, const int8_t *library, uint8_t *codes,
                     uint8_t *selectors) {
    const int group_codes = LUTRA_GROUP / f->pair;
    for (int64_t g = 0; g < n_rows * k / LUTRA_GROUP; g++) {
        const int64_t k0 = g * LUTRA_GROUP % k;
        const float scale = lutra_f16_to_f32(d[g * LUTRA_GROUP / f->sb]);
        float best = INFINITY;
        for (int t = 0; t < LUTRA_TABLES; t++) {
            const int8_t *table = library + t * lutra_cb_table_bytes(f);
            uint8_t candidate[LUTRA_GROUP];
            float error = 0;
            for (int c = 0; c < group_codes; c++) {
                candidate[c] = nearest_code(f, table, scale, w + g * LUTRA_GROUP + c,
                                            importance ? importance + k0 + c : NULL, &error);
            }
            if (t == 0 || error < best) {
                best = error;
                selectors[g] = (uint8_t)t;
                for (int c = 0; c < group_codes; c++) {
                    codes[g * group_codes + c] = candidate[c];
                }
            }
        }
    }
}
