// SPDX-License-Identifier: MIT
// Weights as odd integers times one of few scales: nothing is learned, so that this takes next to no time.
#include "quant.h"

#include "clones.h"
#include "f16.h"

#include <math.h>
#include <string.h>

enum { LANES = 16, MAX_SCALES = 256 };

struct bipolar {
    int64_t k;
    int sb, group, bits, scales, one, step, tries; // one: the number of the scale 1, or -1
    const float *w, *scale;                        // of the tables, falling
    uint8_t *levels;
    uint16_t *selectors, *d;
};

// The levels u of a group, 2u - largest times the scale, and its squared error.
INLINE float round_group(const float *restrict w, int n, float scale, float largest, float *restrict level) {
    const float inverse = 0.5f / scale, middle = 0.5f * largest, whole = 0x1.8p23f;
    float sum[LANES] = {0};
    for (int v = 0; v < n; v += LANES) {
        for (int l = 0; l < LANES; l++) {
            float u = w[v + l] * inverse + middle;
            u = u > 0.0f ? u : 0.0f;
            u = u < largest ? u : largest;
            u = (u + whole) - whole; // to the nearest
            const float error = w[v + l] - scale * (2.0f * u - largest);
            level[v + l] = u;
            sum[l] += error * error;
        }
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) {
            sum[l] += sum[l + half];
        }
    }
    return sum[0];
}

INLINE float largest_of(const float *w, int n) {
    float most[LANES] = {0};
    for (int v = 0; v < n; v += LANES) {
        for (int l = 0; l < LANES; l++) {
            const float x = fabsf(w[v + l]);
            most[l] = x > most[l] ? x : most[l];
        }
    }
    float found = 0.0f;
    for (int l = 0; l < LANES; l++) {
        found = most[l] > found ? most[l] : found;
    }
    return found;
}

// The levels of a super-block that needs no rounding; false for one that does.
static bool on_grid(const struct bipolar *b, const float *w, uint8_t *levels, uint16_t *selectors,
                    uint16_t *d) {
    const int largest = (1 << b->bits) - 1;
    int8_t q[LUTRA_MAX_BLOCK];
    // Nearly always the first group says that there is no grid.
    if (b->one < 0 || b->sb > LUTRA_MAX_BLOCK || !lutra_multiples(w, b->group, q, d) ||
        !lutra_multiples(w, b->sb, q, d)) {
        return false;
    }
    for (int j = 0; j < b->sb; j++) {
        if (q[j] % 2 == 0 || q[j] > largest || q[j] < -largest) {
            return false;
        }
        levels[j] = (uint8_t)((q[j] + largest) / 2);
    }
    for (int g = 0; g < b->sb / b->group; g++) {
        selectors[g] = (uint16_t)b->one;
    }
    return true;
}

LUTRA_CLONES
static void encode_row(void *context, int64_t row) {
    const struct bipolar *b = context;
    const float largest = (float)((1 << b->bits) - 1);
    const float *w = b->w + row * b->k;
    uint8_t *levels = b->levels + row * b->k;
    uint16_t *selectors = b->selectors + row * (b->k / b->group);
    float level[2][LUTRA_MAX_GROUP];
    for (int64_t start = 0; start < b->k; start += b->sb) {
        uint16_t *const of_block = &b->d[row * (b->k / b->sb) + start / b->sb];
        if (on_grid(b, w + start, levels + start, selectors + start / b->group, of_block)) {
            continue;
        }
        const uint16_t half = lutra_f16(largest_of(w + start, b->sb) / (largest * b->scale[0]));
        const float d = lutra_f16_to_f32(half);
        *of_block = half;
        for (int64_t at = start; at < start + b->sb; at += b->group) {
            int first = 0, best = 0, kept = 0; // the smallest scale that cuts nothing off, and what is tried
            if (d == 0.0f) {
                memset(levels + at, 0, (size_t)b->group);
                selectors[at / b->group] = 0;
                continue;
            }
            const float reach = largest_of(w + at, b->group) / largest;
            for (int jump = MAX_SCALES / 2; jump > 0; jump /= 2) {
                first += first + jump < b->scales && d * b->scale[first + jump] >= reach ? jump : 0;
            }
            float least = INFINITY;
            for (int i = 0; i < b->tries && first + i * b->step < b->scales; i++) {
                const int t = first + i * b->step;
                const float error = round_group(w + at, b->group, d * b->scale[t], largest, level[!kept]);
                if (error < least) {
                    least = error;
                    best = t;
                    kept = !kept;
                }
            }
            for (int j = 0; j < b->group; j++) {
                levels[at + j] = (uint8_t)level[kept][j];
            }
            selectors[at / b->group] = (uint16_t)best;
        }
    }
}

enum lutra_status lutra_encode_bipolar(const struct lutra_shape *shape, int bits, int64_t rows, int64_t k,
                                       const float *w, int scales, const float *scale, int step, int tries,
                                       int threads, uint8_t *levels, uint16_t *selectors, uint16_t *d) {
    if (!lutra_valid_matrix(shape, rows, k) || bits < 1 || bits > 8 || scales < 1 || scales > MAX_SCALES ||
        step < 1 || tries < 1 || !lutra_all_within(scales, scale, 0x1p-10f, 127.0f) ||
        !lutra_valid_weights(rows * k, w, NULL, 0)) {
        return LUTRA_REFUSED;
    }
    struct bipolar b = {.k = k,
                        .sb = shape->sb,
                        .group = shape->group,
                        .bits = bits,
                        .scales = scales,
                        .one = -1,
                        .step = step,
                        .tries = tries,
                        .w = w,
                        .scale = scale,
                        .levels = levels,
                        .selectors = selectors,
                        .d = d};
    for (int i = 0; i < scales; i++) {
        b.one = scale[i] == 1.0f ? i : b.one;
    }
    lutra_parallel(rows, threads, encode_row, &b);
    return LUTRA_DONE;
}
