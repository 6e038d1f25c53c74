#include "../avx2/gemm_avx2.h"

void lutra_gemm_cb2_16x4_avx2_vnni(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                                   int64_t n, const struct lutra_column *columns) {
    gemm(2, 256, k, n_strips, strips, library, n, columns);
}
