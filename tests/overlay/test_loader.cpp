// SPDX-License-Identifier: MIT
// lutra_check_library: an entry of -128 is found, in memory and on a device, whose memory is not read here.
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "loader.h"
#include "lutra_ggml.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

static int failures = 0;

static bool damaged(const ggml_tensor *tensor) {
    try {
        lutra_check_library(tensor);
        return false;
    } catch (const std::runtime_error &) {
        return true;
    }
}

static void check(bool ok, const char *what) {
    if (!ok) {
        failures++;
        printf("FAILED %s\n", what);
    }
}

// A buffer of a device: `data` is an address there, no access to it here. What is there can be fetched.
static std::vector<uint8_t> on_device;

static ggml_backend_buffer_t device_buffer(void *data, size_t size) {
    static ggml_backend_buffer_type type = {};
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "device"; };
    type.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };
    ggml_backend_buffer_i iface = {};
    iface.get_base = [](ggml_backend_buffer_t buffer) { return buffer->context; };
    iface.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor *, void *out, size_t offset, size_t n) {
        memcpy(out, on_device.data() + offset, n);
    };
    return ggml_backend_buffer_init(&type, iface, data, size);
}

int main() {
    ggml_init_params params = {ggml_tensor_overhead(), nullptr, true};
    ggml_context *context = ggml_init(params);
    ggml_tensor *tensor = ggml_new_tensor_2d(context, GGML_TYPE_CB2, 256, 8);
    const size_t size = ggml_nbytes(tensor);

    ggml_backend_buffer_t host = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    check(!damaged(tensor), "a tensor without data");
    ggml_backend_tensor_alloc(host, tensor, ggml_backend_buffer_get_base(host));
    memset(tensor->data, 0, size);
    check(!damaged(tensor), "a good library");
    memset((char *)tensor->data + size - 1, 0x80, 1);
    check(damaged(tensor), "-128 as the last entry");
    memset((char *)tensor->data + size - 1, 0, 1);
    memset((char *)tensor->data + size - lutra_library_bytes(tensor) - 1, 0x80, 1);
    check(!damaged(tensor), "a code is no entry");
    ggml_backend_buffer_free(host);

    void *elsewhere = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    tensor->buffer = device_buffer(elsewhere, size);
    tensor->data = elsewhere;
    on_device.assign(size, 0);
    check(!damaged(tensor), "a tensor on a device");
    on_device[size - 1] = 0x80;
    check(damaged(tensor), "a damaged library on a device");
    ggml_backend_buffer_free(tensor->buffer);
    munmap(elsewhere, size);
    ggml_free(context);
    printf("%d failed\n", failures);
    return failures != 0;
}
