// SPDX-License-Identifier: MIT
// Half precision without hardware support.
#include "../include/lutra_ref.h"

#include <string.h>

float lutra_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 31;
    const uint32_t mantissa = h & 0x3ff;
    if (exponent == 0) { // zero and subnormals: mantissa * 2^-24, exact
        const float magnitude = (float)mantissa * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    // Infinity and NaN keep their all-ones exponent (a NaN becomes quiet); the rest is rebiased.
    const uint32_t rebiased = exponent == 31 ? 255 : exponent - 15 + 127;
    const uint32_t quiet = exponent == 31 && mantissa ? 0x400000 : 0;
    const uint32_t bits = sign | rebiased << 23 | mantissa << 13 | quiet;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
