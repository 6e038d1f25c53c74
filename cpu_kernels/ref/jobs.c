// SPDX-License-Identifier: MIT
// The arithmetic of every job of lutra_kernels.h, one weight after another.
#include "../include/lutra_ref.h"

#include <math.h>
#include <string.h>

enum { MAX_SB = 256 };

void lutra_cb_quantize_x(int sb, int64_t k, const float *x, int8_t *q, float *d) {
    for (int64_t s = 0; s < k / sb; s++, x += sb, q += sb) {
        float amax = 0;
        bool finite = true;
        for (int i = 0; i < sb; i++) {
            amax = fmaxf(amax, fabsf(x[i]));
            finite = finite && isfinite(x[i]);
        }
        const bool zero = !finite || amax < 1e-30f;
        const float scale = zero ? 0 : 127 / amax;
        for (int i = 0; i < sb; i++) {
            q[i] = zero ? 0 : (int8_t)rintf(x[i] * scale);
        }
        d[s] = !finite ? NAN : zero ? 0 : amax / 127;
    }
}

void lutra_cb_rest(int n, const float *x, const int8_t *q, float d, float *rest) {
    for (int i = 0; i < n; i++) {
        rest[i] = x[i] - d * q[i];
    }
}

// d of super-block s of one row of a strip.
static float scale_of(const struct lutra_cb_format *f, const uint8_t *strip, int64_t s, int row) {
    uint16_t h;
    memcpy(&h, strip + (size_t)s * lutra_cb_block_bytes(f) + 2 * (size_t)row, sizeof(h));
    return lutra_f16_to_f32(h);
}

static int32_t dot(int n, const int8_t *entries, const int8_t *q) {
    int32_t sum = 0; // at most 256 * 127 * 127 < 2^22: exact as int32 and as float
    for (int i = 0; i < n; i++) {
        sum += entries[i] * q[i];
    }
    return sum;
}

void lutra_cb_dequantize(const struct lutra_cb_format *f, int64_t k, const struct lutra_weights *w, int row,
                         float *y) {
    for (int64_t s = 0; s < k / f->sb; s++) {
        int8_t entries[MAX_SB];
        lutra_cb_entries(f, s * f->sb, f->sb, w, row, entries);
        const float d = scale_of(f, w->strips, s, row);
        for (int i = 0; i < f->sb; i++) {
            y[s * f->sb + i] = d * entries[i];
        }
    }
}

void lutra_cb_gemv(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                   const struct lutra_weights *w, const int8_t *q, const float *d, float *y) {
    const struct lutra_column column = {q, d, y};
    lutra_cb_gemm(f, k, n_strips, w, 1, &column);
}

void lutra_cb_gemm(const struct lutra_cb_format *f, int64_t k, int64_t n_strips,
                   const struct lutra_weights *w, int64_t n, const struct lutra_column *columns) {
    struct lutra_weights strip = *w;
    for (int64_t first = 0; first < n_strips * LUTRA_ROWS; first += LUTRA_ROWS) {
        for (int row = 0; row < LUTRA_ROWS; row++) {
            for (int64_t s = 0; s < k / f->sb; s++) {
                int8_t entries[MAX_SB];
                lutra_cb_entries(f, s * f->sb, f->sb, &strip, row, entries);
                const float d = scale_of(f, strip.strips, s, row);
                for (int64_t c = 0; c < n; c++) {
                    const int32_t isum = dot(f->sb, entries, columns[c].q + s * f->sb);
                    float *y = &columns[c].y[first + row];
                    *y = fmaf(d * columns[c].d[s], (float)isum, s == 0 ? 0 : *y);
                }
            }
        }
        strip.strips += LUTRA_ROWS * lutra_cb_row_bytes(f, k);
        if (f->bits2) {
            strip.second += LUTRA_ROWS * lutra_cb_second_row_bytes(f, k);
        }
    }
}
