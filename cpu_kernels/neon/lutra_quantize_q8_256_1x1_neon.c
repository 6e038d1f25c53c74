#include "quantize_neon.h"

void lutra_quantize_q8_256_1x1_neon(int64_t k, const float *x, int8_t *q, float *d) {
    quantize(256, k, x, q, d);
}
