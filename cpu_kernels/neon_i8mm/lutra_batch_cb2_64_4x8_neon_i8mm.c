#include "batch_neon_i8mm.h"

void lutra_batch_cb2_64_4x8_neon_i8mm(int64_t k, int64_t n_strips, const uint8_t *strips,
                                      const int8_t *library, int64_t n, const struct lutra_column *columns) {
    batch(2, 64, k, n_strips, strips, library, n, columns);
}
