// SPDX-License-Identifier: MIT
// lutra_gguf_fuzz [ROUNDS [SEED]]: damaged GGUF files must be refused or computed.
//
// Round i makes a small file with CB tensors, damages it with a generator seeded by SEED + i, opens it
// as the model loader does and runs every kernel of this CPU on every CB tensor that is accepted.
// `lutra_gguf_fuzz 1 SEED+i` repeats a round; a crash prints that line.
//
// Counts as a crash: a report of ASan or UBSan, an abort (GGML_ASSERT), a round of more than 10 s, and
// an allocation of more than 16 MB, which no file of 30 KB needs.
#include "ggml.h"
#include "gguf.h"
#include "lutra_ggml.h"
#include "lutra_kernels.h"

#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

extern "C" const char *__asan_default_options() {
    return "max_allocation_size_mb=16:handle_abort=1";
}

extern "C" const char *__ubsan_default_options() {
    return "halt_on_error=1:abort_on_error=1:print_stacktrace=1";
}

using Bytes = std::vector<uint8_t>;
using Rng = std::mt19937;

#define ROW(NAME, ...) GGML_TYPE_##NAME,
static const ggml_type TYPES[] = {LUTRA_CB_TYPES(ROW)};
#undef ROW

static const char *const TENSORS[] = {"norm", "experts", "rows"}; // in the order of the file
static const char *const KEYS[] = {"general.architecture",
                                   "general.alignment",
                                   "lutra.layout.version",
                                   "lutra.tensors.crc32",
                                   "tokenizer.ggml.tokens",
                                   "a.bool",
                                   "a.double"};

static unsigned current_seed;
static long n_refused, n_accepted, n_computed; // files, files, tensors

static size_t below(Rng &rng, size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(rng);
}

static void print_round() {
    char line[80];
    const int n = snprintf(line, sizeof(line), "repeat with: lutra_gguf_fuzz 1 %u\n", current_seed);
    if (write(STDERR_FILENO, line, n) != n) {
        _exit(1);
    }
}

[[noreturn]] static void fail(const char *what) {
    fprintf(stderr, "FAILED %s\n", what);
    print_round();
    exit(1);
}

// ---- a good file ---------------------------------------------------------------------------

// Any selectors and codes, finite scales, a library without -128.
static void fill(ggml_tensor *t, Rng &rng) {
    uint8_t *data = (uint8_t *)t->data;
    uint8_t *end = data + ggml_nbytes(t);
    std::generate(data, end, [&] { return (uint8_t)rng(); });
    if (const lutra_cb_format *f = lutra_cb_format_of_type(t->type)) {
        uint8_t *library = data + ggml_nrows(t) * lutra_cb_row_bytes(f, t->ne[0]);
        std::replace(library, library + lutra_cb_library_bytes(f), 0x80, 0);
        for (uint8_t *block = data; block < library; block += lutra_cb_block_bytes(f)) {
            std::fill_n(block, LUTRA_ROWS * sizeof(ggml_fp16_t), 0x20);
        }
    }
}

static Bytes good_file(ggml_type type, Rng &rng) {
    ggml_context *context = ggml_init({1 << 20, nullptr, false});
    const int64_t k = 2 * ggml_blck_size(type);
    ggml_tensor *tensors[] = {
        ggml_new_tensor_1d(context, GGML_TYPE_F32, 8),
        ggml_new_tensor_3d(context, type, k, 8, 3),
        ggml_new_tensor_2d(context, type, k, 16),
    };

    gguf_context *gguf = gguf_init_empty();
    const char *tokens[] = {"a", "", "longer"};
    const uint32_t checksums[] = {1, 2, 3};
    gguf_set_val_str(gguf, KEYS[0], "llama");
    gguf_set_val_u32(gguf, KEYS[1], GGUF_DEFAULT_ALIGNMENT);
    gguf_set_val_u32(gguf, KEYS[2], LUTRA_LAYOUT_VERSION);
    gguf_set_arr_data(gguf, KEYS[3], GGUF_TYPE_UINT32, checksums, std::size(checksums));
    gguf_set_arr_str(gguf, KEYS[4], tokens, std::size(tokens));
    gguf_set_val_bool(gguf, KEYS[5], true);
    gguf_set_val_f64(gguf, KEYS[6], 1.5);

    for (size_t i = 0; i < std::size(tensors); i++) {
        ggml_tensor *t = tensors[i];
        ggml_set_name(t, TENSORS[i]);
        fill(t, rng);
        gguf_add_tensor(gguf, t);
    }

    char *data = nullptr;
    size_t size = 0;
    FILE *file = open_memstream(&data, &size);
    if (!file || !gguf_write_to_file_ptr(gguf, file, false) || fclose(file) != 0) {
        fail("writing the good file");
    }
    const Bytes bytes(data, data + size);
    free(data);
    gguf_free(gguf);
    ggml_free(context);
    return bytes;
}

// ---- damage --------------------------------------------------------------------------------

// Sizes, counts and type ids at which checks change their answer, and numbers that overflow.
static uint64_t extreme(Rng &rng) {
    static const uint64_t values[] = {
        0,
        1,
        2,
        7,
        8,
        63,
        64,
        128,
        255,
        256,
        400,
        402,
        404,
        405,
        422,
        424,
        425,
        INT32_MAX,
        1ull << 31,
        UINT32_MAX,
        1ull << 32,
        1ull << 40,
        1ull << 56,
        1ull << 60,
        1ull << 61,
        1ull << 62,
        INT64_MAX,
        1ull << 63,
        UINT64_MAX,
        0 - 31ull,
        INT64_MAX / 8,
        INT64_MAX / 256 + 1,
    };
    return values[below(rng, std::size(values))];
}

static void put(Bytes &file, size_t at, uint64_t value, size_t bytes) {
    if (at < file.size()) {
        memcpy(&file[at], &value, std::min(bytes, file.size() - at));
    }
}

// Where a name or a key of the header ends; the end of the file if it is not there any more.
static size_t end_of(const Bytes &file, const std::string &name) {
    const auto found = std::search(file.begin(), file.end(), name.begin(), name.end());
    return found == file.end() ? file.size() : found - file.begin() + name.size();
}

// An extreme value as the type, the value, or the type or number of elements of an array.
static void damage_key(Bytes &file, Rng &rng) {
    const size_t at = end_of(file, KEYS[below(rng, std::size(KEYS))]) + 4 * below(rng, 3);
    put(file, at, extreme(rng), below(rng, 2) ? 4 : 8);
}

// Extreme values in some of the fields of one tensor: dimensions, type, offset. Mostly of the last
// tensor, whose size decides no other tensor's offset.
static void damage_tensor(Bytes &file, Rng &rng) {
    size_t at = end_of(file, below(rng, 2) ? "rows" : TENSORS[below(rng, std::size(TENSORS))]);
    if (below(rng, 8) == 0) {
        put(file, at, extreme(rng), 4);
    }
    const size_t n_dims = at < file.size() ? std::min<size_t>(file[at], GGML_MAX_DIMS) : 0;
    at += 4;
    for (size_t i = 0; i < n_dims; i++, at += 8) {
        if (below(rng, 2)) {
            put(file, at, extreme(rng), 8);
        }
    }
    if (below(rng, 4) == 0) {
        put(file, at, below(rng, 2) ? (uint64_t)TYPES[below(rng, std::size(TYPES))] : extreme(rng), 4);
    }
    if (below(rng, 8) == 0) {
        put(file, at + 4, extreme(rng), 8);
    }
}

static void damage(Bytes &file, size_t header, Rng &rng) {
    const size_t at = below(rng, below(rng, 4) ? std::min(header, file.size()) : file.size());
    switch (below(rng, 8)) {
    case 0:
        file[at] ^= (uint8_t)(1 << below(rng, 8));
        break;
    case 1:
        file[at] = (uint8_t)extreme(rng);
        break;
    case 2:
        put(file, at, extreme(rng), 4);
        break;
    case 3:
        put(file, at, extreme(rng), 8);
        break;
    case 4: // one part over another
        std::copy_n(Bytes(file).begin() + at, std::min<size_t>(file.size() - at, 1 + below(rng, 64)),
                    file.begin() + below(rng, at + 1));
        break;
    case 5:
        if (below(rng, 3) == 0) {
            file.resize(1 + at);
        }
        break;
    case 6:
        damage_key(file, rng);
        break;
    default:
        damage_tensor(file, rng);
    }
}

// ---- reading and computing -----------------------------------------------------------------

static void run_kernel(const lutra_kernel *kernel, const ggml_tensor *w) {
    const int64_t k = w->ne[0];
    const int64_t n_strips = ggml_nrows(w) / LUTRA_ROWS;
    const int sb = ggml_blck_size(w->type);
    const lutra_weights weights = lutra_weights_at(w, 0);

    if (kernel->op == LUTRA_OP_DEQUANTIZE) {
        std::vector<float> y(k);
        for (int64_t row = 0; row < n_strips * LUTRA_ROWS; row++) {
            const lutra_weights strip = lutra_weights_at(w, row / LUTRA_ROWS * LUTRA_ROWS * w->nb[1]);
            kernel->fn.dequantize(k, &strip, row % LUTRA_ROWS, y.data());
        }
        return;
    }
    std::vector<float> x(k), d(k / sb);
    for (int64_t i = 0; i < k; i++) {
        x[i] = (float)(i % 255 - 127);
    }
    std::vector<int8_t> q(k);
    lutra_kernel_chosen(LUTRA_OP_QUANTIZE, sb)->fn.quantize(k, x.data(), q.data(), d.data());
    if (kernel->op == LUTRA_OP_GEMV) {
        std::vector<float> y(n_strips * LUTRA_ROWS);
        kernel->fn.gemv(k, n_strips, &weights, q.data(), d.data(), y.data());
    } else {
        std::vector<std::vector<float>> y(5, std::vector<float>(n_strips * LUTRA_ROWS));
        std::vector<lutra_column> columns;
        for (std::vector<float> &column : y) {
            columns.push_back({q.data(), d.data(), column.data()});
        }
        kernel->fn.gemm(k, n_strips, &weights, (int64_t)columns.size(), columns.data());
    }
}

// The tensor's bytes are copied to memory of just their size, so that ASan sees a kernel that reads past
// them, and to an odd address, as in a mapped file whose general.alignment is 1.
static void compute(ggml_tensor *w, const uint8_t *data) {
    const size_t shift = 1;
    const size_t nbytes = ggml_nbytes(w);
    Bytes copy(shift + nbytes);
    w->data = copy.data() + shift;
    memcpy(w->data, data, nbytes);
    if (w->ne[1] % LUTRA_ROWS != 0) {
        fail("accepted rows that do not fill strips");
    }
    lutra_check_data(w->type, w->data, nbytes);
    // Of the data the loader checks only this; whatever else is in it must compute.
    if (!memchr(lutra_library(w), 0x80, lutra_library_bytes(w))) {
        for (int i = 0; i < lutra_kernel_count(); i++) {
            const lutra_kernel *kernel = lutra_kernel_at(i);
            if (kernel->type == (int32_t)w->type && lutra_set_supported(kernel->set)) {
                run_kernel(kernel, w);
            }
        }
        n_computed++;
    }
    w->data = nullptr;
}

static gguf_context *open_file(const Bytes &file, bool no_alloc, ggml_context **tensors) {
    *tensors = nullptr;
    FILE *stream = fmemopen((void *)file.data(), file.size(), "r");
    gguf_context *gguf = gguf_init_from_file_ptr(stream, {no_alloc, tensors});
    fclose(stream);
    return gguf;
}

static void try_file(const Bytes &file) {
    ggml_context *tensors;
    // The tools that read importance matrices and adapters let ggml read the data too.
    gguf_free(open_file(file, false, &tensors));
    ggml_free(tensors);

    // The model loader finds it in the mapped file, after checking that it is there.
    gguf_context *gguf = open_file(file, true, &tensors);
    if (!gguf) {
        n_refused++;
        return;
    }
    n_accepted++;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); i++) {
        ggml_tensor *t = ggml_get_tensor(tensors, gguf_get_tensor_name(gguf, i));
        const size_t offset = gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, i);
        const size_t end = offset + ggml_nbytes(t);
        if (lutra_is_cb(t->type) && end >= offset && end <= file.size()) {
            compute(t, &file[offset]);
        }
    }
    gguf_free(gguf);
    ggml_free(tensors);
}

static size_t header_bytes(const Bytes &file) {
    ggml_context *tensors;
    gguf_context *gguf = open_file(file, true, &tensors);
    if (!gguf) {
        fail("the good file was refused");
    }
    const size_t bytes = gguf_get_data_offset(gguf);
    gguf_free(gguf);
    ggml_free(tensors);
    return bytes;
}

int main(int argc, char **argv) {
    const long rounds = argc > 1 ? atol(argv[1]) : 20000;
    const unsigned seed = argc > 2 ? (unsigned)strtoul(argv[2], nullptr, 10) : 1;
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr); // the reasons of refusals
    __sanitizer_set_death_callback(print_round);
    signal(SIGALRM, [](int) { abort(); });

    for (ggml_type type : TYPES) {
        Rng rng(0);
        const long before = n_computed;
        try_file(good_file(type, rng));
        if (n_computed != before + 2) {
            fail("a tensor of the good file was not computed");
        }
    }
    n_accepted = n_computed = 0;

    for (long i = 0; i < rounds; i++) {
        current_seed = seed + (unsigned)i;
        Rng rng(current_seed);
        Bytes file = good_file(TYPES[below(rng, std::size(TYPES))], rng);
        const size_t header = header_bytes(file);
        for (size_t n = 1 + below(rng, 4); n > 0; n--) {
            damage(file, header, rng);
        }
        alarm(10);
        try_file(file);
    }
    alarm(0);
    printf("%ld damaged files from seed %u: %ld refused, %ld accepted, %ld CB tensors computed\n", rounds,
           seed, n_refused, n_accepted, n_computed);
    return 0;
}
