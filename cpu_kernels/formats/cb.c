// SPDX-License-Identifier: MIT
// The ggml types of the CB family, found by id and by name.
#include "../include/lutra_kernels.h"

#include <string.h>

#define ROW(NAME, name, bits, pair, sb, bits2, pair2)                                                        \
    {#NAME, LUTRA_TYPE_##NAME, bits, pair, sb, bits2, pair2},
static const struct lutra_cb_format formats[] = {LUTRA_CB_TYPES(ROW)};
enum { FORMATS = sizeof(formats) / sizeof(formats[0]) };

const struct lutra_cb_format *lutra_cb_format_of_type(int32_t type) {
    for (int i = 0; i < FORMATS; i++) {
        if (formats[i].type == type) {
            return &formats[i];
        }
    }
    return NULL;
}

const struct lutra_cb_format *lutra_cb_format_of_name(const char *name) {
    for (int i = 0; i < FORMATS; i++) {
        if (strcmp(formats[i].name, name) == 0) {
            return &formats[i];
        }
    }
    return NULL;
}

const struct lutra_cb_format *lutra_cb_first_layer(const struct lutra_cb_format *f) {
    for (int i = 0; i < FORMATS && f->bits2; i++) {
        const struct lutra_cb_format *g = &formats[i];
        if (g->bits == f->bits && g->pair == f->pair && g->sb == f->sb && !g->bits2) {
            return g;
        }
    }
    return f;
}
