#include "gemm_avx2.h"

void lutra_gemm_cb4_16x4_avx2(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                              int64_t n, const struct lutra_column *columns) {
    gemm(4, 256, k, n_strips, strips, library, n, columns);
}
