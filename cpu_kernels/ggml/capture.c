// SPDX-License-Identifier: MIT
// What goes into the products of a graph, for whoever computes it node by node and wants to see the inputs
// of a matrix, or to put other weights in its place: calibration (lutra/runtime/matmul_inputs.py).
#include "ggml-impl.h"
#include "lutra_ggml.h"

#include <string.h>

// The matrix of weights that row (i2, i3) of the inputs meets; without broadcasting, its slice.
static int32_t matrix_of(const struct ggml_tensor *w, const struct ggml_tensor *x, int64_t i2, int64_t i3) {
    const int64_t r2 = x->ne[2] / w->ne[2];
    const int64_t r3 = x->ne[3] / w->ne[3];
    return (int32_t)(i3 / r3 * w->ne[2] + i2 / r2);
}

bool lutra_capture(const struct ggml_tensor *node, struct lutra_matmul_inputs *out) {
    struct ggml_tensor *w = node->src[0];
    const struct ggml_tensor *x = node->src[1];
    if (node->op == GGML_OP_GET_ROWS) {
        *out = (struct lutra_matmul_inputs){.weights = w, .name = w->name};
        return true;
    }
    if ((node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID) || x->type != GGML_TYPE_F32 ||
        x->nb[0] != sizeof(float)) {
        return false;
    }
    *out = (struct lutra_matmul_inputs){
        .weights = w,
        .name = w->name,
        .source = x,
        .rows = ggml_is_contiguous(x) ? x->data : NULL,
        .n_rows = ggml_nrows(x),
        .k = x->ne[0],
    };
    if (node->op == GGML_OP_MUL_MAT_ID) {
        out->n_tokens = node->src[2]->ne[1];
        out->n_used = node->src[2]->ne[0];
    } else if (w->ne[2] * w->ne[3] > 1) {
        out->n_tokens = out->n_rows;
        out->n_used = 1;
    }
    return true;
}

void lutra_copy_rows(const struct ggml_tensor *node, float *out) {
    const struct ggml_tensor *x = node->src[1];
    for (int64_t i3 = 0; i3 < x->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < x->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < x->ne[1]; i1++, out += x->ne[0]) {
                const char *row = (const char *)x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
                memcpy(out, row, x->ne[0] * sizeof(float));
            }
        }
    }
}

void lutra_copy_matrices(const struct ggml_tensor *node, int32_t *out) {
    if (node->op == GGML_OP_MUL_MAT_ID) {
        const struct ggml_tensor *ids = node->src[2];
        for (int64_t token = 0; token < ids->ne[1]; token++) {
            for (int64_t slot = 0; slot < ids->ne[0]; slot++) {
                const char *id = (const char *)ids->data + slot * ids->nb[0] + token * ids->nb[1];
                *out++ = *(const int32_t *)id;
            }
        }
        return;
    }
    const struct ggml_tensor *x = node->src[1];
    for (int64_t i3 = 0; i3 < x->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < x->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < x->ne[1]; i1++) {
                *out++ = matrix_of(node->src[0], x, i2, i3);
            }
        }
    }
}

void *lutra_replace_data(struct ggml_tensor *weights, void *data) {
    void *before = weights->data;
    weights->data = data;
    return before;
}
