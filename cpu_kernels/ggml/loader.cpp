// SPDX-License-Identifier: MIT
// Checks at load time, for libllama.
#include "loader.h"

#include "ggml-backend.h"
#include "llama-impl.h"
#include "lutra_ggml.h"
#include "lutra_kernels.h"

#include <cstring>
#include <stdexcept>
#include <vector>

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

void lutra_check_file(const gguf_context *metadata, const std::map<ggml_type, uint32_t> &n_type) {
    for (const auto &[type, n] : n_type) {
        const lutra_cb_format *cb = lutra_cb_format_of_type(type);
        if (!cb) {
            continue;
        }
        check_layout_version(metadata);
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
