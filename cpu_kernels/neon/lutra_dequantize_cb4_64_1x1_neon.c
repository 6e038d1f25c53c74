#include "dequantize_neon.h"

void lutra_dequantize_cb4_64_1x1_neon(int64_t k, const uint8_t *strip, const int8_t *library, int row,
                                      float *y) {
    dequantize(4, 64, k, strip, library, row, y);
}
