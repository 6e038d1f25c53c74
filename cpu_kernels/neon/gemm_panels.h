// The order of a gemm on decoded panels, for the sets with products of 4 or 8 bytes per lane. Their headers
// define the four parts below, each with its own order of the bytes; `cb`, `sb` and `width` are constants
// at every call.
//
// A super-block of GEMM_STRIPS strips is decoded into panels. Then the activations of 8 columns at a time
// are packed into a tile, which meets all panels. The float sums of the strips and of up to GEMM_COLUMNS
// columns stay on the stack until their rows end.
#ifndef LUTRA_NEON_GEMM_PANELS_H
#define LUTRA_NEON_GEMM_PANELS_H

#include "cb_neon.h"

#include <string.h>

enum {
    GEMM_STRIPS = 16, // 32 KiB of panels
    GEMM_COLUMNS = 64 // as many of sums
};

// Entries and d of 8 rows x sb weights.
struct gemm_panel {
    int8x16_t w[LUTRA_ROWS * 256 / 16];
    float32x4_t d[4];
};

// q and d of up to 8 columns x sb weights.
struct gemm_tile {
    int8x16_t x[8 * 256 / 16];
    float d[8];
};

// Two vectors of sums for every column.
typedef float32x4_t gemm_sums[2 * GEMM_COLUMNS];

// A block of a strip -> its panel.
LUTRA_INLINE void gemm_decode(int cb, int sb, const uint8_t *block, const int8_t *library,
                              struct gemm_panel *panel);

// sb activations of `width` columns at q -> x of a tile.
LUTRA_INLINE void gemm_pack(int sb, int width, const int8_t *const q[8], int8x16_t *x);

// sums[2 * width] += panel x tile.
LUTRA_INLINE void gemm_multiply(int sb, int width, const struct gemm_panel *panel,
                                const struct gemm_tile *tile, float32x4_t *restrict sums);

// The sums of one strip -> y[row] to y[row + 7] of n columns.
LUTRA_INLINE void gemm_finish(const float32x4_t *sums, int64_t n, const struct lutra_column *columns,
                              int64_t row);

// The float of an integer sum i, |i| <= 2^22, without a conversion: the accumulator starts at the bits
// of 1.5 * 2^23, a float whose last place is 1, so that it holds the float 1.5 * 2^23 + i.
LUTRA_INLINE int32x4_t sum_start(void) {
    return vreinterpretq_s32_f32(vdupq_n_f32(0x1.8p23f));
}

LUTRA_INLINE float32x4_t sum_float(int32x4_t acc) {
    return vsubq_f32(vreinterpretq_f32_s32(acc), vdupq_n_f32(0x1.8p23f));
}

// Super-block s of the n <= width columns at `columns` -> tile. A tile that is wider than n repeats the last
// column.
LUTRA_INLINE void gemm_load(int sb, int width, int64_t s, int64_t n, const struct lutra_column *columns,
                            struct gemm_tile *tile) {
    const int8_t *q[8];
    for (int c = 0; c < width; c++) {
        const struct lutra_column *from = &columns[c < n ? c : n - 1];
        q[c] = from->q + s * sb;
        tile->d[c] = from->d[s];
    }
    gemm_pack(sb, width, q, tile->x);
}

// Super-block s: all panels x the n - column <= width columns from `column` on.
LUTRA_INLINE void gemm_columns(int sb, int width, int64_t s, int64_t n_strips,
                               const struct gemm_panel *panels, int64_t n, const struct lutra_column *columns,
                               gemm_sums *sums, int64_t column) {
    struct gemm_tile tile;
    gemm_load(sb, width, s, n - column, columns + column, &tile);
    for (int64_t i = 0; i < n_strips; i++) {
        gemm_multiply(sb, width, &panels[i], &tile, &sums[i][2 * column]);
    }
}

LUTRA_INLINE void gemm_8x8(int cb, int sb, int64_t k, int64_t n_strips, const uint8_t *strips,
                           const int8_t *library, int64_t n, const struct lutra_column *columns) {
    const int64_t block_bytes = cb_block_bytes(cb, sb), strip_bytes = k / sb * block_bytes;
    struct gemm_panel panels[GEMM_STRIPS];
    gemm_sums sums[GEMM_STRIPS];
    for (; n > 0; n -= GEMM_COLUMNS, columns += GEMM_COLUMNS) {
        const int64_t width = n < GEMM_COLUMNS ? n : GEMM_COLUMNS;
        for (int64_t strip = 0; strip < n_strips; strip += GEMM_STRIPS) {
            const int64_t height = n_strips - strip < GEMM_STRIPS ? n_strips - strip : GEMM_STRIPS;
            memset(sums, 0, (size_t)height * sizeof(sums[0]));
            for (int64_t s = 0; s < k / sb; s++) {
                for (int64_t i = 0; i < height; i++) {
                    gemm_decode(cb, sb, strips + (strip + i) * strip_bytes + s * block_bytes, library,
                                &panels[i]);
                }
                int64_t c = 0;
                for (; width - c > 6; c += 8) {
                    gemm_columns(sb, 8, s, height, panels, width, columns, sums, c);
                }
                for (; width - c > 2; c += 4) {
                    gemm_columns(sb, 4, s, height, panels, width, columns, sums, c);
                }
                for (; width - c > 0; c += 2) {
                    gemm_columns(sb, 2, s, height, panels, width, columns, sums, c);
                }
            }
            for (int64_t i = 0; i < height; i++) {
                gemm_finish(sums[i], width, columns, (strip + i) * LUTRA_ROWS);
            }
        }
    }
}

#endif
