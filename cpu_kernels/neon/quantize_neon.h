// SPDX-License-Identifier: MIT
// Activations to int8, for both super-blocks; `sb` is a constant at every call.
#ifndef LUTRA_NEON_QUANTIZE_NEON_H
#define LUTRA_NEON_QUANTIZE_NEON_H

#include "../common.h"

#include <arm_neon.h>
#include <math.h>

// max |x| of sb floats as bits: for non-negative floats the order of the bits is the order of the
// values, with infinity and NaN above everything finite.
static inline float amax_of(int sb, const float *x) {
    uint32x4_t max[4] = {vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0)};
    for (int i = 0; i < sb; i += 16) {
        for (int j = 0; j < 4; j++) {
            const uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i + 4 * j)));
            max[j] = vmaxq_u32(max[j], bits);
        }
    }
    max[0] = vmaxq_u32(vmaxq_u32(max[0], max[1]), vmaxq_u32(max[2], max[3]));
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(max[0]))), 0);
}

static inline void quantize(int sb, int64_t k, const float *x, int8_t *q, float *d) {
    for (int64_t s = 0; s < k / sb; s++, x += sb, q += sb) {
        const float amax = amax_of(sb, x);
        const bool finite = amax < INFINITY; // false for NaN too
        const bool zero = !finite || amax < 1e-30f;
        const float scale = zero ? 0 : 127 / amax;
        for (int i = 0; i < sb; i += 16) {
            int32x4_t v[4];
            for (int j = 0; j < 4; j++) { // vcvtn rounds half to even; infinity * 0 and NaN give 0
                v[j] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4 * j), scale));
            }
            const int16x8_t low = vuzp1q_s16(vreinterpretq_s16_s32(v[0]), vreinterpretq_s16_s32(v[1]));
            const int16x8_t high = vuzp1q_s16(vreinterpretq_s16_s32(v[2]), vreinterpretq_s16_s32(v[3]));
            vst1q_s8(q + i, vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
        }
        d[s] = !finite ? NAN : zero ? 0 : amax / 127;
    }
}

#endif
