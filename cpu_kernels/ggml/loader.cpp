// SPDX-License-Identifier: MIT
// Checks at load time, for libllama.
#include "loader.h"

#include "ggml-backend.h"
#include "llama-impl.h"
#include "lutra_ggml.h"
#include "lutra_kernels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

// The names of tensors whose activations have two planes.
static const char *const LUTRA_PLANES_KEY = "lutra.planes";

static void check_layout_version(const gguf_context *metadata) {
    const char *key = "lutra.layout.version";
    const int64_t id = metadata ? gguf_find_key(metadata, key) : -1;
    if (id < 0 || gguf_get_kv_type(metadata, id) != GGUF_TYPE_UINT32) {
        throw std::runtime_error(format("the file has CB tensors but no %s; it was not written by lutra "
                                        "convert, or a tool dropped the key",
                                        key));
    }
    const uint32_t version = gguf_get_val_u32(metadata, id);
    if (version != LUTRA_LAYOUT_VERSION) {
        throw std::runtime_error(
            format("%s is %u, this build reads %d; convert the model again or update Lutra", key, version,
                   LUTRA_LAYOUT_VERSION));
    }
}

// What LUTRA_PLANES says, 0 if nothing.
static int forced_planes() {
    const char *value = getenv("LUTRA_PLANES");
    if (!value || !*value) {
        return 0;
    }
    if (strcmp(value, "1") != 0 && strcmp(value, "2") != 0) {
        throw std::runtime_error(format("LUTRA_PLANES=%.40s: activations have 1 plane or 2", value));
    }
    return *value - '0';
}

// Whether the file gives the activations of a tensor two planes.
static bool has_two_planes(const gguf_context *metadata, const char *name) {
    const int64_t id = metadata ? gguf_find_key(metadata, LUTRA_PLANES_KEY) : -1;
    if (id < 0) {
        return false;
    }
    for (size_t i = 0; i < gguf_get_arr_n(metadata, id); i++) {
        if (strcmp(gguf_get_arr_str(metadata, id, i), name) == 0) {
            return true;
        }
    }
    return false;
}

static void check_planes(const gguf_context *metadata) {
    const int64_t id = metadata ? gguf_find_key(metadata, LUTRA_PLANES_KEY) : -1;
    if (id >= 0 && (gguf_get_kv_type(metadata, id) != GGUF_TYPE_ARRAY ||
                    gguf_get_arr_type(metadata, id) != GGUF_TYPE_STRING)) {
        throw std::runtime_error(
            format("%s is no list of tensor names; convert the model again", LUTRA_PLANES_KEY));
    }
    if (const int planes = forced_planes()) {
        LLAMA_LOG_INFO("lutra: activations have %d plane%s of int8, by LUTRA_PLANES\n", planes,
                       planes == 1 ? "" : "s");
    } else if (id >= 0) {
        LLAMA_LOG_INFO("lutra: activations have two planes of int8 for %zu tensors\n",
                       gguf_get_arr_n(metadata, id));
    }
}

void lutra_choose_planes(const gguf_context *metadata, ggml_tensor *tensor) {
    if (lutra_is_cb(tensor->type)) {
        const int forced = forced_planes();
        lutra_set_planes(tensor, forced ? forced : has_two_planes(metadata, tensor->name) ? 2 : 1);
    }
}

void lutra_check_file(const gguf_context *metadata, const std::map<ggml_type, uint32_t> &n_type) {
    bool is_checked = false;
    for (const auto &[type, n] : n_type) {
        const lutra_cb_format *cb = lutra_cb_format_of_type(type);
        if (!cb) {
            continue;
        }
        if (!is_checked) {
            check_layout_version(metadata);
            check_planes(metadata);
            is_checked = true;
        }
        for (const char *error : {lutra_kernels_error(), lutra_layers_error()}) {
            if (error) {
                throw std::runtime_error(error);
            }
        }
        LLAMA_LOG_INFO("lutra: %s: %u tensors, %s, %s\n", cb->name, n,
                       lutra_kernel_chosen(LUTRA_OP_GEMV, type)->name,
                       lutra_kernel_chosen(LUTRA_OP_GEMM, type)->name);
    }
}

void lutra_check_library(const ggml_tensor *tensor) {
    const size_t bytes = lutra_library_bytes(tensor);
    if (!tensor->data || !bytes) {
        return;
    }
    const void *library = lutra_library(tensor);
    std::vector<uint8_t> fetched;
    if (tensor->buffer && !ggml_backend_buffer_is_host(tensor->buffer)) { // on a worker
        fetched.resize(bytes);
        ggml_backend_tensor_get(tensor, fetched.data(), (const char *)library - (const char *)tensor->data,
                                bytes);
        library = fetched.data();
    }
    if (memchr(library, 0x80, bytes)) {
        throw std::runtime_error(
            format("tensor '%s' is damaged: its library has an entry of -128; convert the model again",
                   tensor->name));
    }
}
