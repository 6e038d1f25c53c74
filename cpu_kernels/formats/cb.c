// The ggml types of the CB family, and the other members that the reference knows.
#include "../include/lutra_kernels.h"

#include <string.h>

static const struct lutra_cb_format formats[] = {
    {"CB2", LUTRA_TYPE_CB2, 4, 2, 256},      {"CB3", LUTRA_TYPE_CB3, 3, 1, 256},
    {"CB4", LUTRA_TYPE_CB4, 4, 1, 256},      {"CB2_64", LUTRA_TYPE_CB2_64, 4, 2, 64},
    {"CB3_64", LUTRA_TYPE_CB3_64, 3, 1, 64}, {"CB4_64", LUTRA_TYPE_CB4_64, 4, 1, 64},
};
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
