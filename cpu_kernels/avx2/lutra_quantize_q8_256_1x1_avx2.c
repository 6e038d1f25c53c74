#include "quantize_avx2.h"

void lutra_quantize_q8_256_1x1_avx2(int64_t k, const float *x, int8_t *q, float *d) {
    quantize(256, k, x, q, d);
}
