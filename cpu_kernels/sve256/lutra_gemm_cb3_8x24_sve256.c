#include "gemm_sve256.h"

void lutra_gemm_cb3_8x24_sve256(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                                int64_t n, const struct lutra_column *columns) {
    gemm(3, 256, k, n_strips, strips, library, n, columns);
}
