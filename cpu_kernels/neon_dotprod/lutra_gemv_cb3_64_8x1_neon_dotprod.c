#include "../neon/gemv_neon.h"

void lutra_gemv_cb3_64_8x1_neon_dotprod(int64_t k, int64_t n_strips, const uint8_t *strips,
                                        const int8_t *library, const int8_t *q, const float *d, float *y) {
    gemv(3, 64, k, n_strips, strips, library, q, d, y);
}
