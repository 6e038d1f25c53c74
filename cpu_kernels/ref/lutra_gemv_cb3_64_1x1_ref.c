#include "../dispatch/kernels.h"
#include "../include/lutra_ref.h"

void lutra_gemv_cb3_64_1x1_ref(int64_t k, int64_t n_strips, const uint8_t *strips, const int8_t *library,
                               const int8_t *q, const float *d, float *y) {
    lutra_cb_gemv(lutra_cb_format_of_type(LUTRA_TYPE_CB3_64), k, n_strips, strips, library, q, d, y);
}
