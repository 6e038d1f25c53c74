// SPDX-License-Identifier: MIT
// IEEE half precision, as bits.
#ifndef LUTRA_QUANT_F16_H
#define LUTRA_QUANT_F16_H

#include <stdint.h>
#include <string.h>

// The nearest half of a finite x >= 0, ties to even; beyond 65504, 65504.
static inline uint16_t lutra_f16(float x) {
    uint32_t u;
    if (x >= 65504.0f) {
        return 0x7bff;
    }
    if (x < 0x1p-14f) { // subnormal, a multiple of 2^-24: the ulp of 0.5
        float y = x + 0.5f;
        memcpy(&u, &y, 4);
        return (uint16_t)(u - 0x3f000000u);
    }
    memcpy(&u, &x, 4);
    u += 0xfff + ((u >> 13) & 1);
    return (uint16_t)((u >> 13) - ((127 - 15) << 10));
}

#endif
