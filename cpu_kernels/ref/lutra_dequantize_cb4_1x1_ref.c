#include "../dispatch/kernels.h"
#include "../include/lutra_ref.h"

void lutra_dequantize_cb4_1x1_ref(int64_t k, const uint8_t *strip, const int8_t *library, int row, float *y) {
    lutra_cb_dequantize(lutra_cb_format_of_type(LUTRA_TYPE_CB4), k, strip, library, row, y);
}
