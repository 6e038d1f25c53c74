// SPDX-License-Identifier: MIT
// lutra_check_library: an entry of -128 is found, in memory and on a device, whose memory is not read here.
// Planes: what LUTRA_PLANES, or else the file, says.
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "loader.h"
#include "lutra_ggml.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

static int failures = 0;

static bool refused(const std::function<void()> &call) {
    try {
        call();
        return false;
    } catch (const std::runtime_error &) {
        return true;
    }
}

static bool damaged(const ggml_tensor *tensor) {
    return refused([&] { lutra_check_library(tensor); });
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

static void test_planes(ggml_context *context) {
    ggml_tensor *named = ggml_new_tensor_2d(context, GGML_TYPE_CB2, 256, 8);
    ggml_tensor *other = ggml_new_tensor_2d(context, GGML_TYPE_CB2, 256, 8);
    ggml_tensor *stock = ggml_new_tensor_2d(context, GGML_TYPE_F32, 256, 8);
    ggml_set_name(named, "blk.1.ffn_down.weight");
    ggml_set_name(other, "blk.11.ffn_down.weight");
    ggml_set_name(stock, "blk.1.ffn_down.weight");
    gguf_context *metadata = gguf_init_empty();
    gguf_set_val_u32(metadata, "lutra.layout.version", 1);
    const std::map<ggml_type, uint32_t> types = {{GGML_TYPE_CB2, 2}};
    const auto planes = [&](ggml_tensor *tensor) {
        lutra_choose_planes(metadata, tensor);
        return lutra_planes(tensor);
    };
    check(planes(named) == 1, "one plane unless something else is said");
    const char *names[] = {"blk.2.ffn_down.weight", "blk.1.ffn_down.weight"};
    gguf_set_arr_str(metadata, "lutra.planes", names, 2);
    lutra_check_file(metadata, types);
    check(planes(named) == 2 && planes(other) == 1 && planes(stock) == 1, "the file's planes");
    setenv("LUTRA_PLANES", "2", 1);
    lutra_check_file(metadata, types);
    check(planes(named) == 2 && planes(other) == 2 && planes(stock) == 1, "LUTRA_PLANES=2");
    setenv("LUTRA_PLANES", "1", 1);
    check(planes(named) == 1 && planes(other) == 1, "LUTRA_PLANES=1");
    for (const char *wrong : {"0", "3", "12", "x"}) {
        setenv("LUTRA_PLANES", wrong, 1);
        check(refused([&] { lutra_check_file(metadata, types); }), "another LUTRA_PLANES");
    }
    setenv("LUTRA_PLANES", "", 1);
    check(planes(named) == 2 && planes(other) == 1, "an empty LUTRA_PLANES says nothing");
    gguf_set_val_u32(metadata, "lutra.planes", 2);
    check(refused([&] { lutra_check_file(metadata, types); }), "planes that are no list");
    gguf_free(metadata);
}

int main() {
    ggml_init_params params = {4 * ggml_tensor_overhead(), nullptr, true};
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
    test_planes(context);
    ggml_free(context);
    printf("%d failed\n", failures);
    return failures != 0;
}
