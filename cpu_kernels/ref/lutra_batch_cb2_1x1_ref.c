#include "../dispatch/kernels.h"
#include "../include/lutra_ref.h"

void lutra_batch_cb2_1x1_ref(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                             int64_t n, const struct lutra_column *columns) {
    lutra_cb_gemm(lutra_cb_format_of_type(LUTRA_TYPE_CB2), k, n_strips, strips, library, n, columns);
}
