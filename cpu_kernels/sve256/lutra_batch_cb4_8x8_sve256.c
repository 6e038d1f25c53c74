#include "batch_sve256.h"

void lutra_batch_cb4_8x8_sve256(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                                int64_t n, const struct lutra_column *columns) {
    batch(4, 256, k, n_strips, strips, library, n, columns);
}
