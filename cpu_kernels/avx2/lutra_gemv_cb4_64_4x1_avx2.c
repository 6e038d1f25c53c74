#include "batch_avx2.h"

void lutra_gemv_cb4_64_4x1_avx2(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                                const int8_t *q, const float *d, float *y) {
    gemv(4, 64, k, n_strips, strips, library, q, d, y);
}
