#include "../avx2/batch_avx2.h"

void lutra_gemv_cb4_4x1_avx2_vnni(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                                  const int8_t *q, const float *d, float *y) {
    gemv(4, 256, k, n_strips, strips, library, q, d, y);
}
