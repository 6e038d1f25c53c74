#include "../avx2/batch_avx2.h"

void lutra_batch_cb3_64_2x4_avx2_vnni(int64_t k, int64_t n_strips, const uint8_t *strips,
                                      const int8_t *library, int64_t n, const struct lutra_column *columns) {
    batch(3, 64, k, n_strips, strips, library, n, columns);
}
