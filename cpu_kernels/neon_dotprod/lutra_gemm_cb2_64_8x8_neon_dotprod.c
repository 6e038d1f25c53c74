#include "../neon/gemm_panels.h"

void lutra_gemm_cb2_64_8x8_neon_dotprod(int64_t k, int64_t n_strips, const uint8_t *strips,
                                        const int8_t *library, int64_t n,
                                        const struct lutra_column *columns) {
    gemm(2, 64, k, n_strips, strips, library, n, columns);
}
