// SPDX-License-Identifier: MIT
// Size, shape and data of CB tensors, for ggml-base.
#include "lutra_ggml.h"

#include "ggml-impl.h"
#include "lutra_kernels.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool lutra_is_cb(enum ggml_type type) {
    // Asked of every operand of every operation: cheap for ggml's own types.
    return (int)type >= LUTRA_TYPE_FIRST && lutra_cb_format_of_type(type) != NULL;
}

size_t lutra_type_library_bytes(enum ggml_type type) {
    const struct lutra_cb_format *f = lutra_cb_format_of_type(type);
    return f ? lutra_cb_library_bytes(f) : 0;
}

size_t lutra_library_bytes(const struct ggml_tensor *tensor) {
    return tensor->view_src ? 0 : lutra_type_library_bytes(tensor->type);
}

const int8_t *lutra_library(const struct ggml_tensor *tensor) {
    const struct ggml_tensor *whole = tensor->view_src ? tensor->view_src : tensor;
    const struct lutra_cb_format *f = lutra_cb_format_of_type(whole->type);
    return (const int8_t *)whole->data + (size_t)ggml_nrows(whole) * lutra_cb_row_bytes(f, whole->ne[0]);
}

struct lutra_weights lutra_weights_at(const struct ggml_tensor *tensor, size_t offset) {
    const struct ggml_tensor *whole = tensor->view_src ? tensor->view_src : tensor;
    const struct lutra_cb_format *f = lutra_cb_format_of_type(whole->type);
    const size_t row = ((const char *)tensor->data - (const char *)whole->data + offset) / whole->nb[1];
    const int8_t *library = lutra_library(whole);
    return (struct lutra_weights){
        .strips = (const uint8_t *)whole->data + row * lutra_cb_row_bytes(f, whole->ne[0]),
        .second = f->bits2 ? (const uint8_t *)library + lutra_cb_library_bytes(f) +
                                 row * lutra_cb_second_row_bytes(f, whole->ne[0])
                           : NULL,
        .library = library,
    };
}

bool lutra_first_layers_only(void) {
    const char *layers = getenv("LUTRA_LAYERS");
    return layers && strcmp(layers, "1") == 0;
}

enum ggml_type lutra_loaded_type(enum ggml_type type) {
    const struct lutra_cb_format *f = lutra_is_cb(type) ? lutra_cb_format_of_type(type) : NULL;
    return f && lutra_first_layers_only() ? (enum ggml_type)lutra_cb_first_layer(f)->type : type;
}

const char *lutra_layers_error(void) {
    const char *layers = getenv("LUTRA_LAYERS");
    return !layers || !*layers || strcmp(layers, "1") == 0 || strcmp(layers, "2") == 0
               ? NULL
               : "LUTRA_LAYERS is neither 1 nor 2: a tensor has two layers at most";
}

// Weights have no operation, whose parameters lie here; RPC sends them.
int lutra_planes(const struct ggml_tensor *tensor) {
    const struct ggml_tensor *whole = tensor->view_src ? tensor->view_src : tensor;
    return whole->op == GGML_OP_NONE && whole->op_params[0] == 2 ? 2 : 1;
}

void lutra_set_planes(struct ggml_tensor *tensor, int planes) {
    tensor->op_params[0] = planes;
}

bool lutra_check_shape(const struct ggml_tensor *tensor) {
    if (!lutra_is_cb(tensor->type)) {
        return true;
    }
    if (ggml_is_empty(tensor)) { // ggml_nbytes() is 0 then and has no room for the library
        GGML_LOG_ERROR("%s: tensor '%s' of type %s is empty\n", __func__, tensor->name,
                       ggml_type_name(tensor->type));
        return false;
    }
    if (tensor->ne[1] % LUTRA_ROWS != 0) {
        GGML_LOG_ERROR("%s: tensor '%s' of type %s has %" PRId64 " rows, not a multiple of %d\n", __func__,
                       tensor->name, ggml_type_name(tensor->type), tensor->ne[1], LUTRA_ROWS);
        return false;
    }
    return true;
}

bool lutra_check_data(enum ggml_type type, const void *data, size_t nbytes) {
    const struct lutra_cb_format *f = lutra_cb_format_of_type(type);
    const size_t block = lutra_cb_block_bytes(f);
    const size_t both = block + lutra_cb_second_chunk(f) * (size_t)(f->sb / LUTRA_CHUNK);
    const size_t library = lutra_cb_library_bytes(f);
    if (nbytes < library || (nbytes - library) % both != 0) {
        fprintf(stderr, "%s: invalid size %zu for type %s\n", __func__, nbytes, f->name);
        return false;
    }
    const uint8_t *p = data;
    const uint8_t *end = p + (nbytes - library) / both * block;
    for (size_t i = 0; p < end; p += block, i++) {
        uint16_t d[LUTRA_ROWS];
        memcpy(d, p, sizeof(d));
        for (int row = 0; row < LUTRA_ROWS; row++) {
            if ((d[row] & 0x7c00) == 0x7c00) {
                fprintf(stderr, "%s: the scale of row %d of strip-super-block %zu is not finite\n", __func__,
                        row, i);
                return false;
            }
        }
    }
    if (memchr(end, 0x80, library)) {
        fprintf(stderr, "%s: the library has an entry of -128; entries are in [-127, 127]\n", __func__);
        return false;
    }
    return true;
}

// Whole strips in their order: the tensor itself, or a view that takes none apart.
static bool has_whole_strips(const struct ggml_tensor *w) {
    const struct ggml_tensor *whole = w->view_src ? w->view_src : w;
    const size_t strip = LUTRA_ROWS * whole->nb[1];
    return w->type == whole->type && w->ne[0] == whole->ne[0] && w->nb[0] == whole->nb[0] &&
           w->nb[1] == whole->nb[1] && w->ne[1] % LUTRA_ROWS == 0 && w->nb[2] % strip == 0 &&
           w->nb[3] % strip == 0 && w->view_offs % strip == 0;
}

bool lutra_is_cb_op(const struct ggml_tensor *op) {
    if (lutra_is_cb(op->type)) {
        return true;
    }
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (op->src[i] && lutra_is_cb(op->src[i]->type)) {
            return true;
        }
    }
    return false;
}

bool lutra_is_computable(const struct ggml_tensor *op) {
    if (op->op == GGML_OP_NONE || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_VIEW ||
        op->op == GGML_OP_PERMUTE || op->op == GGML_OP_TRANSPOSE) {
        return true; // nothing to compute
    }
    const struct ggml_tensor *w = op->src[0];
    const struct ggml_tensor *x = op->src[1];
    if (!w || !x || !lutra_is_cb(w->type) || !has_whole_strips(w) || op->type != GGML_TYPE_F32) {
        return false;
    }
    switch (op->op) {
    case GGML_OP_MUL_MAT:
        return x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float);
    case GGML_OP_MUL_MAT_ID:
        return x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && op->src[2]->type == GGML_TYPE_I32;
    case GGML_OP_GET_ROWS:
        return x->type == GGML_TYPE_I32;
    default:
        return false;
    }
}
