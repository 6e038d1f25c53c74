// SPDX-License-Identifier: MIT
// From codes, selectors and scales to strips and back, for every member of the family.
#include "../include/lutra_ref.h"
#include "bits.h"

#include <string.h>

// Byte offsets of a row's parts in a strip: d of super-block s, and the selectors of the chunk that
// starts at weight k0 (the chunk's codes follow the 16 selectors of its 8 rows).
static size_t d_offset(const struct lutra_cb_format *f, int64_t s, int row) {
    return (size_t)s * lutra_cb_block_bytes(f) + 2 * (size_t)row;
}

static size_t chunk_offset(const struct lutra_cb_format *f, int64_t k0) {
    const int64_t s = k0 / f->sb;
    const int64_t chunk = k0 % f->sb / LUTRA_CHUNK;
    return d_offset(f, s, LUTRA_ROWS) + (size_t)chunk * lutra_cb_chunk_bytes(f);
}

// Calls are per chunk: codes[row] are the chunk's 64 / pair codes of that row, in one of the layers.
static void pack_chunk(int bits, int pair, const uint8_t *codes[LUTRA_ROWS], uint8_t *packed) {
    const struct lutra_bits *b = &lutra_bits[bits];
    const int row_lanes = LUTRA_CHUNK / pair / LUTRA_LANE;
    for (int lane = 0; lane < LUTRA_ROWS * row_lanes; lane += b->lanes, packed += b->vectors * LUTRA_LANE) {
        uint8_t period[8][LUTRA_LANE];
        for (int i = 0; i < b->lanes; i++) {
            const uint8_t *row = codes[(lane + i) / row_lanes];
            memcpy(period[i], row + (lane + i) % row_lanes * LUTRA_LANE, LUTRA_LANE);
        }
        lutra_bits_pack(b, period, packed);
    }
}

// The 64 / pair codes of one row of a chunk.
static void unpack_row(int bits, int pair, const uint8_t *packed, int row, uint8_t *codes) {
    const struct lutra_bits *b = &lutra_bits[bits];
    const int row_lanes = LUTRA_CHUNK / pair / LUTRA_LANE;
    uint8_t period[8][LUTRA_LANE];
    int unpacked = -1;
    for (int i = 0; i < row_lanes; i++) {
        const int lane = row * row_lanes + i;
        if (lane / b->lanes != unpacked) {
            unpacked = lane / b->lanes;
            lutra_bits_unpack(b, packed + unpacked * b->vectors * LUTRA_LANE, period);
        }
        memcpy(codes + i * LUTRA_LANE, period[lane % b->lanes], LUTRA_LANE);
    }
}

void lutra_cb_pack(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *codes,
                   const uint8_t *selectors, const uint16_t *d, uint8_t *strips) {
    for (int64_t r0 = 0; r0 < n_rows; r0 += LUTRA_ROWS) {
        uint8_t *strip = strips + (size_t)r0 * lutra_cb_row_bytes(f, k);
        for (int row = 0; row < LUTRA_ROWS; row++) {
            for (int64_t s = 0; s < k / f->sb; s++) {
                memcpy(strip + d_offset(f, s, row), &d[(r0 + row) * (k / f->sb) + s], 2);
            }
        }
        for (int64_t k0 = 0; k0 < k; k0 += LUTRA_CHUNK) {
            uint8_t *chunk = strip + chunk_offset(f, k0);
            const uint8_t *row_codes[LUTRA_ROWS];
            for (int row = 0; row < LUTRA_ROWS; row++) {
                memcpy(chunk + 2 * row, selectors + ((r0 + row) * k + k0) / LUTRA_GROUP, 2);
                row_codes[row] = codes + ((r0 + row) * k + k0) / f->pair;
            }
            pack_chunk(f->bits, f->pair, row_codes, chunk + 2 * LUTRA_ROWS);
        }
    }
}

void lutra_cb_unpack(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *strips,
                     uint8_t *codes, uint8_t *selectors, uint16_t *d) {
    for (int64_t r = 0; r < n_rows; r++) {
        const int row = (int)(r % LUTRA_ROWS);
        const uint8_t *strip = strips + (size_t)(r - row) * lutra_cb_row_bytes(f, k);
        for (int64_t s = 0; s < k / f->sb; s++) {
            memcpy(&d[r * (k / f->sb) + s], strip + d_offset(f, s, row), 2);
        }
        for (int64_t k0 = 0; k0 < k; k0 += LUTRA_CHUNK) {
            const uint8_t *chunk = strip + chunk_offset(f, k0);
            memcpy(selectors + (r * k + k0) / LUTRA_GROUP, chunk + 2 * row, 2);
            unpack_row(f->bits, f->pair, chunk + 2 * LUTRA_ROWS, row, codes + (r * k + k0) / f->pair);
        }
    }
}

void lutra_cb_pack_second(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *codes,
                          uint8_t *second) {
    for (int64_t r0 = 0; r0 < n_rows; r0 += LUTRA_ROWS) {
        for (int64_t k0 = 0; k0 < k; k0 += LUTRA_CHUNK, second += lutra_cb_second_chunk(f)) {
            const uint8_t *row_codes[LUTRA_ROWS];
            for (int row = 0; row < LUTRA_ROWS; row++) {
                row_codes[row] = codes + ((r0 + row) * k + k0) / f->pair2;
            }
            pack_chunk(f->bits2, f->pair2, row_codes, second);
        }
    }
}

void lutra_cb_unpack_second(const struct lutra_cb_format *f, int64_t k, int64_t n_rows, const uint8_t *second,
                            uint8_t *codes) {
    for (int64_t r0 = 0; r0 < n_rows; r0 += LUTRA_ROWS) {
        for (int64_t k0 = 0; k0 < k; k0 += LUTRA_CHUNK, second += lutra_cb_second_chunk(f)) {
            for (int row = 0; row < LUTRA_ROWS; row++) {
                unpack_row(f->bits2, f->pair2, second, row, codes + ((r0 + row) * k + k0) / f->pair2);
            }
        }
    }
}

// What 64 codes' worth of weights of a row add to their entries in one layer; codes as unpack_row gives them.
static void add_entries(int bits, int pair, const uint8_t *codes, const uint8_t selector[2],
                        const int8_t *library, int8_t *entries) {
    const int group_codes = LUTRA_GROUP / pair;
    for (int g = 0; g < 2; g++) {
        const int8_t *table = library + ((size_t)selector[g] * pair << bits);
        for (int w = 0; w < pair; w++) { // weight w of every pair
            for (int c = 0; c < group_codes; c++) {
                int8_t *entry = &entries[g * LUTRA_GROUP + w * group_codes + c];
                const uint8_t sum =
                    (uint8_t)*entry + (uint8_t)table[(w << bits) + codes[g * group_codes + c]];
                *entry = (int8_t)sum;
            }
        }
    }
}

void lutra_cb_entries(const struct lutra_cb_format *f, int64_t k0, int64_t n, const struct lutra_weights *w,
                      int row, int8_t *entries) {
    memset(entries, 0, (size_t)n);
    for (int64_t i = 0; i < n; i += LUTRA_CHUNK) {
        const uint8_t *chunk = w->strips + chunk_offset(f, k0 + i), *selector = chunk + 2 * row;
        uint8_t codes[LUTRA_CHUNK];
        unpack_row(f->bits, f->pair, chunk + 2 * LUTRA_ROWS, row, codes);
        add_entries(f->bits, f->pair, codes, selector, w->library, entries + i);
        if (f->bits2) {
            const size_t at = (size_t)((k0 + i) / LUTRA_CHUNK);
            unpack_row(f->bits2, f->pair2, w->second + at * lutra_cb_second_chunk(f), row, codes);
            add_entries(f->bits2, f->pair2, codes, selector, w->library + lutra_cb_first_library(f),
                        entries + i);
        }
    }
}
