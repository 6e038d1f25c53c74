#include "gemv_avx512.h"

void lutra_gemv_cb3_8x1_avx512(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                               const int8_t *q, const float *d, float *y) {
    gemv(3, 256, k, n_strips, strips, library, q, d, y);
}
