#include "../dispatch/kernels.h"
#include "../include/lutra_ref.h"

void lutra_quantize_q8_64_1x1_ref(int64_t k, const float *x, int8_t *q, float *d) {
    lutra_cb_quantize_x(64, k, x, q, d);
}
