// SPDX-License-Identifier: MIT
// Packing and unpacking of one period of codes; bits.h has the idea.
#include "bits.h"

#include <string.h>

#include "bit_maps.inc"

void lutra_bits_unpack(const struct lutra_bits *b, const uint8_t *restrict packed,
                       uint8_t codes[8][LUTRA_LANE]) {
    int met[8] = {0};
    memset(codes, 0, (size_t)b->lanes * LUTRA_LANE);
    for (int v = 0; v < b->vectors; v++) {
        for (int bit = 0; bit < 8; bit++) {
            const int lane = b->map[v][7 - bit] - '0';
            const uint8_t mask = (uint8_t)(1 << bit), value = (uint8_t)(1 << met[lane]++);
            for (int j = 0; j < LUTRA_LANE; j++) {
                codes[lane][j] |= packed[v * LUTRA_LANE + j] & mask ? value : 0;
            }
        }
    }
}

void lutra_bits_pack(const struct lutra_bits *b, const uint8_t codes[8][LUTRA_LANE],
                     uint8_t *restrict packed) {
    int met[8] = {0};
    memset(packed, 0, (size_t)b->vectors * LUTRA_LANE);
    for (int v = 0; v < b->vectors; v++) {
        for (int bit = 0; bit < 8; bit++) {
            const int lane = b->map[v][7 - bit] - '0';
            const uint8_t mask = (uint8_t)(1 << bit), value = (uint8_t)(1 << met[lane]++);
            for (int j = 0; j < LUTRA_LANE; j++) {
                packed[v * LUTRA_LANE + j] |= codes[lane][j] & value ? mask : 0;
            }
        }
    }
}
