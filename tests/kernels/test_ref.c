// SPDX-License-Identifier: MIT
// The reference against the words and drawings of formats/cb.h, written out a second time.
#include "harness.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct lutra_cb_format *family(int bits, int pair, int sb) {
    static struct lutra_cb_format f;
    f = (struct lutra_cb_format){"", -1, bits, pair, sb, 0, 0};
    return &f;
}

static const struct lutra_cb_format *layered(int bits, int pair, int bits2, int pair2, int sb) {
    static struct lutra_cb_format f;
    f = (struct lutra_cb_format){"", -1, bits, pair, sb, bits2, pair2};
    return &f;
}

// pack and unpack undo each other, and every bit of the strips belongs to exactly one field.
static void test_round_trip(const struct lutra_cb_format *f) {
    const int64_t k = 2 * f->sb, rows = 16;
    const size_t n_codes = (size_t)(rows * k / f->pair), n_selectors = (size_t)(rows * k / LUTRA_GROUP);
    const size_t n_d = (size_t)(rows * k / f->sb), bytes = (size_t)rows * lutra_cb_row_bytes(f, k);
    struct buffer codes = output_new(n_codes, 1), selectors = output_new(n_selectors, 1);
    struct buffer d = output_new(2 * n_d, 2), strips = output_new(bytes, 1), again = output_new(bytes, 1);
    for (size_t i = 0; i < bytes; i++) {
        strips.data[i] = (uint8_t)random_bits();
    }
    lutra_cb_unpack(f, k, rows, strips.data, codes.data, selectors.data, (uint16_t *)d.data);
    lutra_cb_pack(f, k, rows, codes.data, selectors.data, (uint16_t *)d.data, again.data);
    bool codes_fit = true;
    for (size_t i = 0; i < n_codes; i++) {
        codes_fit = codes_fit && codes.data[i] < 1 << f->bits;
    }
    check(memcmp(strips.data, again.data, bytes) == 0 && codes_fit && output_intact(&codes) &&
              output_intact(&selectors) && output_intact(&d) && output_intact(&again),
          "round trip: bits %d pair %d sb %d", f->bits, f->pair, f->sb);
    buffer_free(&codes);
    buffer_free(&selectors);
    buffer_free(&d);
    buffer_free(&strips);
    buffer_free(&again);
}

// One code set in an otherwise zero tensor of one strip of 64 weights: the byte and the bits it takes.
static void expect_bits(const struct lutra_cb_format *f, int row, int code_index, uint8_t code, int byte,
                        const uint8_t expected[5]) {
    const int64_t k = LUTRA_CHUNK;
    uint8_t codes[LUTRA_ROWS * LUTRA_CHUNK] = {0}, selectors[2 * LUTRA_ROWS] = {0}, strip[512] = {0};
    uint16_t d[LUTRA_ROWS] = {0};
    codes[row * (LUTRA_CHUNK / f->pair) + code_index] = code;
    lutra_cb_pack(f, k, LUTRA_ROWS, codes, selectors, d, strip);
    uint8_t all[512] = {0};
    for (int v = 0; v < 5; v++) {
        all[32 + byte + 16 * v] = expected[v];
    }
    check(memcmp(strip, all, lutra_cb_block_bytes(f)) == 0, "bits of code %d of row %d: bits %d pair %d",
          code_index, row, f->bits, f->pair);
}

static void test_bit_places(void) {
    // CB4, row 2: weight 3 is the low nibble of byte 3, weight 19 the high one; 35 and 51: next vector.
    const struct lutra_cb_format *f = family(4, 1, 64);
    expect_bits(f, 2, 3, 0xb, 2 * 32 + 3, (uint8_t[5]){0x0b});
    expect_bits(f, 2, 19, 0xb, 2 * 32 + 3, (uint8_t[5]){0xb0});
    expect_bits(f, 2, 35, 0xb, 2 * 32 + 16 + 3, (uint8_t[5]){0x0b});
    expect_bits(f, 2, 51, 0xb, 2 * 32 + 16 + 3, (uint8_t[5]){0xb0});
    // CB2, row 5: pair 7 of group 0 is the low nibble of byte 7, of group 1 the high one.
    f = family(4, 2, 64);
    expect_bits(f, 5, 7, 0x6, 5 * 16 + 7, (uint8_t[5]){0x06});
    expect_bits(f, 5, 16 + 7, 0x6, 5 * 16 + 7, (uint8_t[5]){0x60});
    // CB3, rows 2 and 3 (the second period), weight 9 of each lane vector: code 5 = bits 0 and 2,
    // then code 2 = bit 1.
    f = family(3, 1, 64);
    expect_bits(f, 2, 9, 5, 48 + 9, (uint8_t[5]){0x0a});
    expect_bits(f, 2, 16 + 9, 5, 48 + 9, (uint8_t[5]){0xa0});
    expect_bits(f, 2, 32 + 9, 5, 48 + 9, (uint8_t[5]){0, 0x09});
    expect_bits(f, 2, 48 + 9, 5, 48 + 9, (uint8_t[5]){0, 0x90});
    expect_bits(f, 3, 9, 5, 48 + 9, (uint8_t[5]){0, 0, 0x09});
    expect_bits(f, 3, 16 + 9, 5, 48 + 9, (uint8_t[5]){0, 0, 0x90});
    expect_bits(f, 3, 32 + 9, 5, 48 + 9, (uint8_t[5]){0x01, 0, 0x04});
    expect_bits(f, 3, 48 + 9, 5, 48 + 9, (uint8_t[5]){0x10, 0, 0x40});
    expect_bits(f, 2, 9, 2, 48 + 9, (uint8_t[5]){0x04});
    expect_bits(f, 2, 16 + 9, 2, 48 + 9, (uint8_t[5]){0x40});
    expect_bits(f, 2, 32 + 9, 2, 48 + 9, (uint8_t[5]){0, 0x04});
    expect_bits(f, 2, 48 + 9, 2, 48 + 9, (uint8_t[5]){0, 0x40});
    expect_bits(f, 3, 9, 2, 48 + 9, (uint8_t[5]){0, 0, 0x02});
    expect_bits(f, 3, 16 + 9, 2, 48 + 9, (uint8_t[5]){0, 0, 0x20});
    expect_bits(f, 3, 32 + 9, 2, 48 + 9, (uint8_t[5]){0, 0x02, 0});
    expect_bits(f, 3, 48 + 9, 2, 48 + 9, (uint8_t[5]){0, 0x20, 0});
    // 1, 2, 5 and 6 bits.
    expect_bits(family(1, 1, 64), 1, 48 + 2, 1, 2, (uint8_t[5]){0x80});
    expect_bits(family(2, 1, 64), 1, 16 + 2, 2, 16 + 2, (uint8_t[5]){0x08});
    expect_bits(family(5, 1, 64), 0, 48 + 2, 0x1c, 2, (uint8_t[5]){0, 0xc0, 0, 0, 0x08});
    expect_bits(family(6, 1, 64), 0, 16 + 2, 0x35, 2, (uint8_t[5]){0x50, 0, 0x30});
}

// gemv, with both scales 1, is the plain integer sum over codes looked up by hand.
static void test_integer_sums(const struct lutra_cb_format *f) {
    const int64_t k = f->sb;
    uint8_t codes[LUTRA_ROWS * 256], selectors[LUTRA_ROWS * 8];
    uint16_t d[LUTRA_ROWS];
    int8_t library[LUTRA_TABLES * 128], q[256];
    float x_scale = 1, y[LUTRA_ROWS], w[256];
    for (int i = 0; i < LUTRA_ROWS * k / f->pair; i++) {
        codes[i] = (uint8_t)(random_bits() & ((1u << f->bits) - 1));
    }
    for (int i = 0; i < LUTRA_ROWS * k / LUTRA_GROUP; i++) {
        selectors[i] = (uint8_t)random_bits();
    }
    for (int i = 0; i < LUTRA_ROWS; i++) {
        d[i] = 0x3c00;
    }
    for (size_t i = 0; i < lutra_cb_library_bytes(f); i++) {
        library[i] = (int8_t)((int)(random_bits() % 255) - 127);
    }
    for (int i = 0; i < k; i++) {
        q[i] = (int8_t)((int)(random_bits() % 255) - 127);
    }
    struct buffer strip = output_new(lutra_cb_block_bytes(f), 0);
    lutra_cb_pack(f, k, LUTRA_ROWS, codes, selectors, d, strip.data);
    const struct lutra_weights weights = {strip.data, NULL, library};
    lutra_cb_gemv(f, k, 1, &weights, q, &x_scale, y);
    for (int row = 0; row < LUTRA_ROWS; row++) {
        int32_t sum = 0;
        lutra_cb_dequantize(f, k, &weights, row, w);
        bool dequantized = true;
        for (int i = 0; i < k; i++) {
            const int group = i / 32, at = i % 32;
            const int table = selectors[row * (k / 32) + group];
            const int entry =
                f->pair == 1
                    ? library[(table << f->bits) + codes[row * k + i]]
                    : library[((2 * table + at / 16) << f->bits) + codes[row * k / 2 + group * 16 + at % 16]];
            dequantized = dequantized && w[i] == (float)entry;
            sum += entry * q[i];
        }
        check(dequantized && y[row] == (float)sum, "integer sum: bits %d pair %d sb %d row %d", f->bits,
              f->pair, f->sb, row);
    }
    buffer_free(&strip);
}

// What is exactly representable is encoded exactly; nothing that encode gives can be improved by
// changing one code.
static void test_encode(const struct lutra_cb_format *f) {
    const int64_t k = 64;
    struct tensor t = tensor_new(f, k, 1, WEIGHTS_RANDOM);
    const int8_t *library = (const int8_t *)t.library.data;
    uint8_t codes[LUTRA_ROWS * 64], selectors[LUTRA_ROWS * 2];
    uint16_t d[LUTRA_ROWS];
    float w[LUTRA_ROWS * 64], again[64], importance[64];
    lutra_cb_unpack(f, k, LUTRA_ROWS, t.strips.data, codes, selectors, d);
    for (int row = 0; row < LUTRA_ROWS; row++) {
        lutra_cb_dequantize(f, k, &t.weights, row, w + row * k);
    }
    lutra_cb_encode(f, k, LUTRA_ROWS, w, NULL, d, library, codes, selectors);
    lutra_cb_pack(f, k, LUTRA_ROWS, codes, selectors, d, t.strips.data);
    for (int row = 0; row < LUTRA_ROWS; row++) {
        lutra_cb_dequantize(f, k, &t.weights, row, again);
        check(same_floats(again, w + row * k, 64), "encode of exact weights: bits %d pair %d", f->bits,
              f->pair);
    }
    // Zero importance everywhere except one weight: that weight must get its nearest entry of all tables.
    for (int i = 0; i < 64; i++) {
        importance[i] = i == 20;
    }
    for (int i = 0; i < LUTRA_ROWS * k; i++) {
        w[i] = random_normal() * 0.1f;
    }
    lutra_cb_encode(f, k, LUTRA_ROWS, w, importance, d, library, codes, selectors);
    lutra_cb_pack(f, k, LUTRA_ROWS, codes, selectors, d, t.strips.data);
    for (int row = 0; row < LUTRA_ROWS; row++) {
        lutra_cb_dequantize(f, k, &t.weights, row, again);
        const float scale = lutra_f16_to_f32(d[row]);
        float best = INFINITY;
        for (int table = 0; table < LUTRA_TABLES; table++) {
            const int8_t *entries = library + table * lutra_cb_table_bytes(f);
            for (int code = 0; code < 1 << f->bits; code++) { // weight 20 is the second of a pair
                const int8_t entry = entries[code + (f->pair == 2 ? 1 << f->bits : 0)];
                const float distance = fabsf(w[row * k + 20] - scale * entry);
                best = distance < best ? distance : best;
            }
        }
        check(fabsf(w[row * k + 20] - again[20]) == best, "encode by importance: bits %d pair %d", f->bits,
              f->pair);
    }
    tensor_free(&t);
}

// A layered tensor is the sum, modulo 256, of its first layer and of its second one with the same selectors.
static void test_layers(const struct lutra_cb_format *f) {
    const int64_t k = 2 * f->sb;
    enum { MAX_K = 512 };
    struct tensor t = tensor_new(f, k, 2, WEIGHTS_SCALES_ONE);
    const int64_t rows = t.n_strips * LUTRA_ROWS;
    uint8_t *codes = malloc((size_t)(rows * k / f->pair)), *selectors = malloc((size_t)(rows * k));
    uint8_t *second = malloc((size_t)(rows * k / f->pair2)), *again = malloc(t.second.bytes);
    uint16_t *d = malloc((size_t)(rows * k));
    lutra_cb_unpack(f, k, rows, t.strips.data, codes, selectors, d);
    lutra_cb_unpack_second(f, k, rows, t.second.data, second);
    lutra_cb_pack_second(f, k, rows, second, again);
    check(memcmp(again, t.second.data, t.second.bytes) == 0, "second layer, round trip: bits %d pair %d",
          f->bits2, f->pair2);
    const int8_t *library2 = (const int8_t *)t.library.data + lutra_cb_first_library(f);
    struct lutra_cb_format first = *f;
    first.bits2 = first.pair2 = 0;
    for (int row = 0; row < rows; row++) {
        float sum[MAX_K], one[MAX_K];
        struct lutra_weights strip = t.weights;
        strip.strips += row / LUTRA_ROWS * LUTRA_ROWS * lutra_cb_row_bytes(f, k);
        strip.second += row / LUTRA_ROWS * LUTRA_ROWS * lutra_cb_second_row_bytes(f, k);
        lutra_cb_dequantize(f, k, &strip, row % LUTRA_ROWS, sum);
        lutra_cb_dequantize(&first, k, &strip, row % LUTRA_ROWS, one);
        bool right = true;
        for (int i = 0; i < k; i++) {
            const int table = selectors[(row * k + i) / 32], at = i % 32;
            const int entry = f->pair2 == 1 ? library2[(table << f->bits2) + second[row * k + i]]
                                            : library2[((2 * table + at / 16) << f->bits2) +
                                                       second[(row * k + i - at) / 2 + at % 16]];
            right = right && sum[i] == (float)(int8_t)(uint8_t)((int)one[i] + entry);
        }
        check(right, "sum of layers: bits %d + %d pair %d sb %d row %d", f->bits, f->bits2, f->pair2, f->sb,
              row);
    }
    free(codes);
    free(selectors);
    free(second);
    free(again);
    free(d);
    tensor_free(&t);
}

static void test_f16(void) {
    static const struct {
        uint16_t h;
        float value;
    } known[] = {{0x0000, 0},        {0x3c00, 1},           {0xc000, -2},
                 {0x7bff, 65504},    {0x0001, 0x1p-24f},    {0x03ff, 0x1.ff8p-15f},
                 {0x0400, 0x1p-14f}, {0x3555, 0x1.554p-2f}, {0x7c00, INFINITY}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        check(lutra_f16_to_f32(known[i].h) == known[i].value, "f16 %04x", known[i].h);
    }
    check(isnan(lutra_f16_to_f32(0x7e00)) && signbit(lutra_f16_to_f32(0x8000)), "f16 NaN and minus zero");
}

static void test_quantize_edges(void) {
    enum { SB = 64 };
    float x[SB], d;
    int8_t q[SB];
    fill_x(x, SB, X_ZERO);
    lutra_cb_quantize_x(SB, SB, x, q, &d);
    check(d == 0 && !signbit(d) && q[0] == 0 && q[1] == 0, "quantize zeros");
    x[0] = 1e-31f;
    lutra_cb_quantize_x(SB, SB, x, q, &d);
    check(d == 0 && q[0] == 0, "quantize below 1e-30");
    x[1] = NAN;
    lutra_cb_quantize_x(SB, SB, x, q, &d);
    check(isnan(d) && q[0] == 0 && q[1] == 0, "quantize NaN");
    x[1] = -INFINITY;
    lutra_cb_quantize_x(SB, SB, x, q, &d);
    check(isnan(d) && q[1] == 0, "quantize infinity");
    x[1] = -FLT_MAX;
    x[2] = FLT_MAX;
    lutra_cb_quantize_x(SB, SB, x, q, &d);
    check(d == FLT_MAX / 127 && q[1] == -127 && q[2] == 127, "quantize the largest floats");
    for (int i = 0; i < SB; i++) {
        x[i] = (float)(i - 31) + 0.5f; // halves go to the even neighbour
    }
    x[0] = 127;
    lutra_cb_quantize_x(SB, SB, x, q, &d);
    check(d == 1 && q[30] == 0 && q[31] == 0 && q[32] == 2 && q[29] == -2 && q[33] == 2, "quantize halves");
}

void test_ref(void) {
    test_f16();
    test_quantize_edges();
    test_bit_places();
    for (int bits = 1; bits <= 6; bits++) {
        for (int pair = 1; pair <= 2; pair++) {
            test_round_trip(family(bits, pair, 256));
            test_round_trip(family(bits, pair, 64));
            test_integer_sums(family(bits, pair, 256));
            test_integer_sums(family(bits, pair, 64));
            test_encode(family(bits, pair, 64));
            test_layers(layered(4, 1, bits, pair, 256));
            test_layers(layered(bits, pair, 3, 1, 64));
        }
    }
}
