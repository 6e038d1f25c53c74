// SPDX-License-Identifier: MIT
// Where each bit of a code lies: the pictures of formats/cb_types.h as data.
#ifndef LUTRA_REF_BITS_H
#define LUTRA_REF_BITS_H

#include "../formats/cb.h"

// A period: `lanes` lane vectors of 16 codes share `vectors` vectors of 16 bytes. map[v] shows byte j
// of vector v, bit 7 first: each digit is the lane vector that owns the bit. A lane vector's bits
// are numbered in the order in which they are met: vector by vector, in a vector from bit 0 up.
struct lutra_bits {
    int lanes;
    int vectors;
    const char *map[5];
};

extern const struct lutra_bits lutra_bits[]; // [bits per code]; bit_maps.inc

// One period of packed vectors <-> its codes.
void lutra_bits_unpack(const struct lutra_bits *b, const uint8_t *restrict packed,
                       uint8_t codes[8][LUTRA_LANE]);
void lutra_bits_pack(const struct lutra_bits *b, const uint8_t codes[8][LUTRA_LANE],
                     uint8_t *restrict packed);

#endif
