// SPDX-License-Identifier: MIT
// MUL_MAT, MUL_MAT_ID and GET_ROWS on random CB tensors through ggml's CPU backend, against float64
// sums over dequantized weights and the same quantized activations.
//
// A kernel sums exact integers within a super-block and rounds once per super-block, at most
// k / super-block <= 16 times, so |y - expected| <= 16 * 2^-23 * sum |w x| < 2e-6 * sum |w x|.
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "lutra_ggml.h"
#include "lutra_kernels.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static const double TOLERANCE = 2e-6;
#define ROW(NAME, ...) GGML_TYPE_##NAME,
static const ggml_type TYPES[] = {LUTRA_CB_TYPES(ROW)};
#undef ROW

static int failures = 0;
static int checks = 0;

static void check(bool ok, const char *what, const char *type, const char *detail = "") {
    checks++;
    if (!ok) {
        failures++;
        printf("FAILED %s %s %s\n", type, what, detail);
    }
}

static std::mt19937 rng(1);

static float uniform(float lo, float hi) {
    return std::uniform_real_distribution<float>(lo, hi)(rng);
}

static const lutra_kernel *ref_kernel(lutra_op op, int32_t type) {
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const lutra_kernel *k = lutra_kernel_at(i);
        if (k->op == op && k->set == LUTRA_SET_REF && k->type == type) {
            return k;
        }
    }
    GGML_ABORT("no reference kernel");
}

// Random strips with sane scales and a random library.
static std::vector<uint8_t> random_data(const ggml_tensor *t) {
    const lutra_cb_format *f = lutra_cb_format_of_type(t->type);
    std::vector<uint8_t> data(ggml_nbytes(t));
    const size_t rows_end = ggml_nrows(t) * lutra_cb_row_bytes(f, t->ne[0]);
    const size_t libraries_end = rows_end + lutra_cb_library_bytes(f);
    for (size_t i = 0; i < data.size(); i++) {
        data[i] = (uint8_t)rng();
        if (i >= rows_end && i < libraries_end && data[i] == 0x80) {
            data[i] = 0;
        }
    }
    for (size_t block = 0; block < rows_end; block += lutra_cb_block_bytes(f)) {
        for (int row = 0; row < LUTRA_ROWS; row++) {
            const ggml_fp16_t d = ggml_fp32_to_fp16(uniform(0.001f, 0.01f));
            memcpy(&data[block + 2 * row], &d, 2);
        }
    }
    return data;
}

// Tensors and one graph.
struct Graph {
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_context *context;
    ggml_backend_buffer_t buffer = nullptr;

    Graph() {
        const size_t graphs = 32 * ggml_graph_overhead_custom(64, false);
        ggml_init_params params = {64 * ggml_tensor_overhead() + graphs, nullptr, true};
        context = ggml_init(params);
    }
    ~Graph() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
        ggml_backend_free(backend);
    }
    void allocate() {
        buffer = ggml_backend_alloc_ctx_tensors(context, backend);
    }
    bool supports(ggml_tensor *op) {
        return ggml_backend_dev_supports_op(ggml_backend_get_device(backend), op);
    }
    std::vector<float> compute(ggml_tensor *out, int threads) {
        ggml_cgraph *graph = ggml_new_graph_custom(context, 64, false);
        ggml_build_forward_expand(graph, out);
        ggml_backend_cpu_set_n_threads(backend, threads);
        std::vector<float> y(ggml_nelements(out), NAN);
        ggml_backend_tensor_set(out, y.data(), 0, ggml_nbytes(out));
        GGML_ASSERT(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
        ggml_backend_tensor_get(out, y.data(), 0, ggml_nbytes(out));
        return y;
    }
};

static void set_weights(ggml_tensor *w) {
    const std::vector<uint8_t> data = random_data(w);
    check(lutra_check_data(w->type, data.data(), data.size()), "check_data", ggml_type_name(w->type));
    ggml_backend_tensor_set(w, data.data(), 0, data.size());
}

static void set_random(ggml_tensor *x) {
    std::vector<float> data(ggml_nelements(x));
    for (float &v : data) {
        v = uniform(-1, 1);
    }
    ggml_backend_tensor_set(x, data.data(), 0, ggml_nbytes(x));
}

// Row r of slice (i2, i3) of w as floats.
static std::vector<float> weight_row(const ggml_tensor *w, int64_t r, int64_t i2, int64_t i3) {
    std::vector<float> row(w->ne[0]);
    const lutra_weights strip =
        lutra_weights_at(w, r / LUTRA_ROWS * LUTRA_ROWS * w->nb[1] + i2 * w->nb[2] + i3 * w->nb[3]);
    ref_kernel(LUTRA_OP_DEQUANTIZE, w->type)->fn.dequantize(w->ne[0], &strip, r % LUTRA_ROWS, row.data());
    return row;
}

// Row (i1, i2, i3) of x, quantized as the weights w want it, as floats.
static std::vector<double> activation_row(const ggml_tensor *x, const ggml_tensor *w, int64_t i1, int64_t i2,
                                          int64_t i3) {
    const int64_t k = x->ne[0];
    const int sb = ggml_blck_size(w->type);
    std::vector<int8_t> q(k);
    std::vector<float> d(k / sb), rest(k);
    std::vector<double> row(k);
    const char *data = (const char *)x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
    memcpy(rest.data(), data, k * sizeof(float));
    for (int plane = 0; plane < lutra_planes(w); plane++) {
        ref_kernel(LUTRA_OP_QUANTIZE, sb)->fn.quantize(k, rest.data(), q.data(), d.data());
        for (int64_t i = 0; i < k; i++) {
            row[i] += (double)q[i] * d[i / sb];
            const volatile float part = d[i / sb] * q[i]; // rounds
            rest[i] -= part;
        }
    }
    return row;
}

static bool close_to_dot(float y, const std::vector<float> &w, const std::vector<double> &x) {
    double sum = 0, size = 0;
    for (size_t i = 0; i < w.size(); i++) {
        sum += w[i] * x[i];
        size += std::fabs(w[i] * x[i]);
    }
    return std::fabs(y - sum) <= TOLERANCE * size;
}

// Computes out with several numbers of threads, wants the same bits, and `right` for every element.
static void check_output(Graph &g, ggml_tensor *out, ggml_type type, const char *what,
                         const std::function<bool(float, int64_t, int64_t, int64_t, int64_t)> &right) {
    check(g.supports(out), "supported", ggml_type_name(type), what);
    const std::vector<float> y = g.compute(out, 1);
    for (int threads : {2, 3, 4, 7}) {
        const std::vector<float> again = g.compute(out, threads);
        check(memcmp(y.data(), again.data(), y.size() * sizeof(float)) == 0, "threads do not matter",
              ggml_type_name(type), what);
    }
    int64_t wrong = 0, i = 0;
    for (int64_t i3 = 0; i3 < out->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < out->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < out->ne[1]; i1++) {
                for (int64_t i0 = 0; i0 < out->ne[0]; i0++) {
                    wrong += !right(y[i++], i0, i1, i2, i3);
                }
            }
        }
    }
    char detail[200];
    snprintf(detail, sizeof(detail), "%s: %lld of %zu values", what, (long long)wrong, y.size());
    check(wrong == 0, "values", ggml_type_name(type), detail);
}

static void check_mul_mat(Graph &g, ggml_tensor *w, ggml_tensor *x, ggml_tensor *out, const char *what) {
    std::vector<std::vector<float>> rows(w->ne[1] * w->ne[2] * w->ne[3]);
    std::vector<std::vector<double>> columns(ggml_nrows(x));
    for (size_t i = 0; i < rows.size(); i++) {
        rows[i] = weight_row(w, i % w->ne[1], i / w->ne[1] % w->ne[2], i / w->ne[1] / w->ne[2]);
    }
    for (size_t i = 0; i < columns.size(); i++) {
        columns[i] = activation_row(x, w, i % x->ne[1], i / x->ne[1] % x->ne[2], i / x->ne[1] / x->ne[2]);
    }
    const int64_t r2 = x->ne[2] / w->ne[2], r3 = x->ne[3] / w->ne[3];
    check_output(g, out, w->type, what, [&](float y, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
        return close_to_dot(y, rows[(i3 / r3 * w->ne[2] + i2 / r2) * w->ne[1] + i0],
                            columns[(i3 * x->ne[2] + i2) * x->ne[1] + i1]);
    });
}

static void test_mul_mat(ggml_type type, int planes) {
    struct Case {
        int64_t blocks, rows, columns, w2, w3, r2, r3;
    };
    const Case cases[] = {
        {1, 8, 1, 1, 1, 1, 1},    {3, 264, 1, 1, 1, 1, 1},  {16, 24, 2, 1, 1, 1, 1}, {3, 40, 7, 1, 1, 1, 1},
        {2, 72, 300, 1, 1, 1, 1}, {1, 16, 33, 2, 1, 1, 1},  {1, 16, 1, 1, 1, 5, 1},  {2, 24, 3, 2, 1, 3, 1},
        {1, 8, 2, 2, 3, 2, 2},    {1, 4096, 1, 1, 1, 1, 1}, {4, 8, 1, 1, 1, 1, 7},   {1, 8208, 1, 1, 1, 1, 1},
        {1, 200, 64, 1, 1, 1, 1}, // rows that do not fit into rest at once
    };
    for (const Case &c : cases) {
        Graph g;
        const int64_t k = c.blocks * ggml_blck_size(type);
        ggml_tensor *w = ggml_new_tensor_4d(g.context, type, k, c.rows, c.w2, c.w3);
        ggml_tensor *x = ggml_new_tensor_4d(g.context, GGML_TYPE_F32, k, c.columns, c.w2 * c.r2, c.w3 * c.r3);
        ggml_tensor *out = ggml_mul_mat(g.context, w, x);
        g.allocate();
        set_weights(w);
        lutra_set_planes(w, planes);
        set_random(x);
        char what[120];
        snprintf(what, sizeof(what),
                 "mul_mat k %lld rows %lld columns %lld w %lldx%lld repeated %lldx%lld planes %d",
                 (long long)k, (long long)c.rows, (long long)c.columns, (long long)c.w2, (long long)c.w3,
                 (long long)c.r2, (long long)c.r3, planes);
        check_mul_mat(g, w, x, out, what);
    }
}

// Views that take no strip apart find the library of the tensor they view; activations may be strided.
static void test_views(ggml_type type, int planes) {
    const int64_t k = 2 * ggml_blck_size(type);
    Graph g;
    ggml_tensor *w = ggml_new_tensor_3d(g.context, type, k, 48, 3);
    ggml_tensor *rows = ggml_view_3d(g.context, w, k, 24, 3, w->nb[1], w->nb[2], 16 * w->nb[1]);
    ggml_tensor *slice = ggml_view_2d(g.context, w, k, 48, w->nb[1], 2 * w->nb[2]);
    ggml_tensor *flat = ggml_reshape_2d(g.context, w, k, 144);
    ggml_tensor *all = ggml_new_tensor_4d(g.context, GGML_TYPE_F32, k, 3, 5, 1);
    ggml_tensor *x = ggml_permute(g.context, all, 0, 2, 1, 3); // rows of x are 3 rows apart
    ggml_tensor *out_rows = ggml_mul_mat(g.context, rows, x);
    ggml_tensor *out_slice = ggml_mul_mat(g.context, slice, x);
    ggml_tensor *out_flat = ggml_mul_mat(g.context, flat, x);
    g.allocate();
    set_weights(w);
    lutra_set_planes(w, planes);
    check(lutra_planes(rows) == planes && lutra_planes(flat) == planes, "views have its planes",
          ggml_type_name(type));
    set_random(all);
    check(ggml_nbytes(rows) < ggml_nbytes(w) && ggml_nbytes(flat) == ggml_nbytes(w) - lutra_library_bytes(w),
          "views do not count the library", ggml_type_name(type));
    check_mul_mat(g, rows, x, out_rows, "rows of experts");
    check_mul_mat(g, slice, x, out_slice, "one expert");
    check_mul_mat(g, flat, x, out_flat, "reshaped");
}

static void test_mul_mat_id(ggml_type type, int planes) {
    const int64_t experts = 8, k = 3 * ggml_blck_size(type), n_rows = 40;
    for (int64_t used : {1, 3}) {
        for (int64_t tokens : {1, 5, 90, 400}) {        // 400: several tiles of columns per expert
            for (int64_t x_rows : {(int64_t)1, used}) { // one activation row for all experts, or one each
                Graph g;
                ggml_tensor *w = ggml_new_tensor_3d(g.context, type, k, n_rows, experts);
                ggml_tensor *x = ggml_new_tensor_3d(g.context, GGML_TYPE_F32, k, x_rows, tokens);
                ggml_tensor *ids_all = ggml_new_tensor_2d(g.context, GGML_TYPE_I32, experts, tokens);
                ggml_tensor *ids = ggml_view_2d(g.context, ids_all, used, tokens, ids_all->nb[1], 0);
                ggml_tensor *out = ggml_mul_mat_id(g.context, w, x, ids);
                g.allocate();
                set_weights(w);
                lutra_set_planes(w, planes);
                set_random(x);
                std::vector<int32_t> choice(experts * tokens);
                for (int64_t t = 0; t < tokens; t++) { // expert 7 is never chosen
                    for (int64_t i = 0; i < experts; i++) {
                        choice[t * experts + i] = (int32_t)((t * t + 3 * i) % 7);
                    }
                }
                ggml_backend_tensor_set(ids_all, choice.data(), 0, ggml_nbytes(ids_all));
                std::vector<std::vector<float>> rows(n_rows * experts);
                std::vector<std::vector<double>> columns(x_rows * tokens);
                for (size_t i = 0; i < rows.size(); i++) {
                    rows[i] = weight_row(w, i % n_rows, i / n_rows, 0);
                }
                for (size_t i = 0; i < columns.size(); i++) {
                    columns[i] = activation_row(x, w, i % x_rows, i / x_rows, 0);
                }
                char what[100];
                snprintf(what, sizeof(what),
                         "mul_mat_id %lld of %lld experts, %lld tokens, %lld rows of x, planes %d",
                         (long long)used, (long long)experts, (long long)tokens, (long long)x_rows, planes);
                check_output(g, out, type, what, [&](float y, int64_t i0, int64_t i1, int64_t i2, int64_t) {
                    return close_to_dot(y, rows[choice[i2 * experts + i1] * n_rows + i0],
                                        columns[i2 * x_rows + i1 % x_rows]);
                });
            }
        }
    }
}

static void test_get_rows(ggml_type type) {
    Graph g;
    const int64_t k = 3 * ggml_blck_size(type);
    ggml_tensor *w = ggml_new_tensor_4d(g.context, type, k, 32, 2, 3);
    ggml_tensor *ids = ggml_new_tensor_3d(g.context, GGML_TYPE_I32, 9, 2, 3);
    ggml_tensor *out = ggml_get_rows(g.context, w, ids);
    g.allocate();
    set_weights(w);
    std::vector<int32_t> choice(ggml_nelements(ids));
    for (int32_t &row : choice) {
        row = rng() % 32;
    }
    ggml_backend_tensor_set(ids, choice.data(), 0, ggml_nbytes(ids));
    check_output(g, out, type, "get_rows", [&](float y, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
        return y == weight_row(w, choice[(i3 * 2 + i2) * 9 + i1], i2, i3)[i0];
    });
}

// Whatever else is asked of a CB tensor is refused, so that the scheduler or the loader reports it.
static void test_refusals(ggml_type type) {
    Graph g;
    const int64_t k = 2 * ggml_blck_size(type);
    ggml_context *c = g.context;
    ggml_tensor *w = ggml_new_tensor_2d(c, type, k, 32);
    ggml_tensor *x = ggml_new_tensor_2d(c, GGML_TYPE_F32, k, 4);
    ggml_tensor *half = ggml_new_tensor_2d(c, GGML_TYPE_F16, k, 4);
    ggml_tensor *f32 = ggml_new_tensor_2d(c, GGML_TYPE_F32, k, 32);
    ggml_tensor *row_ids = ggml_new_tensor_1d(c, GGML_TYPE_I64, 4);
    ggml_tensor *less = ggml_view_2d(c, w, k / 2, 32, w->nb[1], 0);
    ggml_tensor *shifted = ggml_view_2d(c, w, k, 16, w->nb[1], 4 * w->nb[1]);
    ggml_tensor *few = ggml_view_2d(c, w, k, 4, w->nb[1], 0);
    const char *name = ggml_type_name(type);
    check(g.supports(ggml_mul_mat(c, w, x)), "mul_mat is supported", name);
    check(!g.supports(ggml_mul_mat(c, w, half)), "refuses F16 activations", name);
    check(!g.supports(ggml_mul_mat(c, f32, w)), "refuses CB activations", name);
    check(!g.supports(ggml_mul_mat(c, less, ggml_view_2d(c, x, k / 2, 4, x->nb[1], 0))), "refuses half rows",
          name);
    check(!g.supports(ggml_mul_mat(c, shifted, x)), "refuses a view that starts inside a strip", name);
    check(!g.supports(ggml_mul_mat(c, few, x)), "refuses half a strip", name);
    check(!g.supports(ggml_get_rows(c, shifted, ggml_new_tensor_1d(c, GGML_TYPE_I32, 1))),
          "refuses shifted rows", name);
    check(!g.supports(ggml_cpy(c, w, f32)), "refuses CB to F32", name);
    check(!g.supports(ggml_cpy(c, f32, w)), "refuses F32 to CB", name);
    check(!g.supports(ggml_set_rows(c, w, x, row_ids)), "refuses set_rows", name);
    check(!g.supports(ggml_add(c, w, ggml_new_tensor_2d(c, GGML_TYPE_F32, k, 32))), "refuses add", name);
    check(!g.supports(ggml_out_prod(c, w, f32)), "refuses out_prod", name);
}

// The loader asks for each buffer type of the CPU; only the plain one keeps the layout of the file.
static void test_buffers(ggml_type type) {
    Graph g;
    ggml_tensor *w = ggml_new_tensor_2d(g.context, type, ggml_blck_size(type), 32);
    ggml_tensor *x = ggml_new_tensor_2d(g.context, GGML_TYPE_F32, ggml_blck_size(type), 4);
    ggml_tensor *op = ggml_mul_mat(g.context, w, x);
    ggml_backend_dev_t device = ggml_backend_get_device(g.backend);
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    const auto extra_types = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
        registry, "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t *t = extra_types(device); *t; t++) {
        w->buffer = ggml_backend_buft_alloc_buffer(*t, 0);
        check(!g.supports(op), "refuses the buffer type", ggml_type_name(type), ggml_backend_buft_name(*t));
        ggml_backend_buffer_free(w->buffer);
    }
    w->buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), 0);
    check(g.supports(op), "takes the plain buffer type", ggml_type_name(type));
    ggml_backend_buffer_free(w->buffer);
}

static void test_data_check(ggml_type type) {
    Graph g;
    ggml_tensor *w = ggml_new_tensor_2d(g.context, type, ggml_blck_size(type), 16);
    const char *name = ggml_type_name(type);
    std::vector<uint8_t> data = random_data(w);
    check(ggml_validate_row_data(type, data.data(), data.size()), "good data", name);
    check(!ggml_validate_row_data(type, data.data(), data.size() - 1), "finds a wrong size", name);
    const lutra_cb_format *f = lutra_cb_format_of_type(type);
    uint8_t *last = &data[16 * lutra_cb_row_bytes(f, w->ne[0]) + lutra_cb_library_bytes(f) - 1];
    *last = 0x80;
    check(!ggml_validate_row_data(type, data.data(), data.size()), "finds -128 in the library", name);
    *last = 0;
    const uint16_t nan = 0x7e00;
    memcpy(&data[lutra_cb_block_bytes(f) + 2], &nan, 2);
    check(!ggml_validate_row_data(type, data.data(), data.size()), "finds a scale that is NaN", name);
}

// ---- capturing ------------------------------------------------------------------------------

// What is captured of a product, multiplied by its weights, is the product; row by row, in its columns'
// order.
static void check_capture(Graph &g, ggml_tensor *out, bool is_view, const char *what) {
    const std::vector<float> y = g.compute(out, 1);
    lutra_matmul_inputs in;
    check(lutra_capture(out, &in), "is a product", what);
    const ggml_tensor *w = out->src[0];
    check(in.weights == w && strcmp(in.name, "w") == 0 && in.source == out->src[1], "operands", what);
    check((in.rows != nullptr) == is_view, "a view where rows are contiguous", what);
    std::vector<float> rows(in.n_rows * in.k);
    lutra_copy_rows(out, rows.data());
    check(!in.rows || memcmp(in.rows, rows.data(), rows.size() * sizeof(float)) == 0, "view and copy", what);
    std::vector<int32_t> matrices(in.n_tokens * in.n_used);
    if (in.n_used) {
        lutra_copy_matrices(out, matrices.data());
    }
    check(matrices.empty() == (w->ne[2] * w->ne[3] == 1), "matrices of a stack", what);
    const int64_t n_columns = ggml_nrows(out), n_out = out->ne[0];
    const int64_t rows_per_token = in.n_tokens ? in.n_rows / in.n_tokens : 1;
    int64_t wrong = 0;
    for (int64_t c = 0; c < n_columns; c++) {
        const int64_t row = rows_per_token == in.n_used || !in.n_used ? c : c / in.n_used;
        const int64_t matrix = matrices.empty() ? 0 : matrices[c];
        for (int64_t r = 0; r < n_out; r++) {
            const float *weights = (const float *)w->data + (matrix * n_out + r) * in.k;
            double sum = 0, size = 0;
            for (int64_t i = 0; i < in.k; i++) {
                sum += (double)weights[i] * rows[row * in.k + i];
                size += std::fabs((double)weights[i] * rows[row * in.k + i]);
            }
            wrong += std::fabs(y[c * n_out + r] - sum) > 1e-5 * size;
        }
    }
    check(wrong == 0, "captured rows times weights", what);
}

static ggml_tensor *named_weights(Graph &g, int64_t k, int64_t rows, int64_t n2, int64_t n3) {
    ggml_tensor *w = ggml_new_tensor_4d(g.context, GGML_TYPE_F32, k, rows, n2, n3);
    ggml_set_name(w, "w");
    return w;
}

static void test_capture() {
    const int64_t k = 64, heads = 3, tokens = 5;
    Graph g;
    ggml_context *c = g.context;
    ggml_tensor *one = named_weights(g, k, 8, 1, 1);
    ggml_tensor *stack = named_weights(g, k, 8, heads, 1);
    ggml_tensor *deep = named_weights(g, k, 8, heads, 2);
    ggml_tensor *x = ggml_new_tensor_3d(c, GGML_TYPE_F32, k, heads, tokens);
    ggml_tensor *wide = ggml_new_tensor_2d(c, GGML_TYPE_F32, 3 * k, tokens);
    ggml_tensor *slices = ggml_new_tensor_4d(c, GGML_TYPE_F32, k, tokens, 2 * heads, 4);
    ggml_tensor *shared = ggml_new_tensor_3d(c, GGML_TYPE_F32, k, 1, tokens);
    ggml_tensor *ids_all = ggml_new_tensor_2d(c, GGML_TYPE_I32, 4, tokens);
    ggml_tensor *ids = ggml_view_2d(c, ids_all, 2, tokens, ids_all->nb[1], 0);
    ggml_tensor *each = ggml_new_tensor_3d(c, GGML_TYPE_F32, 2 * k, 2, tokens);
    ggml_tensor *by_head = ggml_permute(c, x, 0, 2, 1, 3); // as MLA's attn_k_b meets its inputs
    ggml_tensor *part = ggml_view_2d(c, wide, k, tokens, wide->nb[1], k * sizeof(float));
    ggml_tensor *half = ggml_view_3d(c, each, k, 2, tokens, each->nb[1], each->nb[2], k * sizeof(float));
    struct {
        ggml_tensor *out;
        bool is_view;
        const char *what;
    } const products[] = {
        {ggml_mul_mat(c, one, x), true, "contiguous"},
        {ggml_mul_mat(c, one, by_head), false, "permuted"},
        {ggml_mul_mat(c, one, part), false, "part of wider rows"},
        {ggml_mul_mat(c, stack, by_head), false, "a matrix per head, permuted"},
        {ggml_mul_mat(c, deep, slices), true, "a stack of stacks, broadcast"},
        {ggml_mul_mat_id(c, stack, shared, ids), true, "experts with the same input"},
        {ggml_mul_mat_id(c, stack, half, ids), false, "experts with strided inputs each"},
    };
    ggml_tensor *rows = ggml_get_rows(c, one, ggml_new_tensor_1d(c, GGML_TYPE_I32, 1));
    ggml_tensor *sum = ggml_add(c, x, x);
    g.allocate();
    for (ggml_tensor *t : {one, stack, deep, x, wide, slices, shared, each}) {
        set_random(t);
    }
    std::vector<int32_t> choice(4 * tokens);
    for (size_t i = 0; i < choice.size(); i++) {
        choice[i] = (int32_t)(i * i % heads);
    }
    ggml_backend_tensor_set(ids_all, choice.data(), 0, ggml_nbytes(ids_all));
    for (const auto &p : products) {
        check_capture(g, p.out, p.is_view, p.what);
    }
    lutra_matmul_inputs in;
    check(lutra_capture(rows, &in) && in.weights == one && !in.source, "a lookup", "get_rows");
    check(!lutra_capture(sum, &in), "no product", "add");

    std::vector<float> zeros(8 * k, 0), before = g.compute(products[0].out, 1);
    void *data = lutra_replace_data(one, zeros.data());
    for (float y : g.compute(products[0].out, 1)) {
        check(y == 0, "other weights", "replace");
    }
    check(lutra_replace_data(one, data) == zeros.data() && g.compute(products[0].out, 1) == before,
          "weights restored", "replace");
}

// ---- the line of a crash --------------------------------------------------------------------

// The line that a child writes when it crashes, with a file and its directory to be removed.
static void check_crash(const char *expected, void (*crash)(), bool in_thread) {
    char directory[] = "/tmp/lutra-crash-XXXXXX", file[64];
    check(mkdtemp(directory) != nullptr, "mkdtemp", expected);
    snprintf(file, sizeof(file), "%s/f16.gguf", directory);
    fclose(fopen(file, "w"));
    int ends[2];
    check(pipe(ends) == 0, "pipe", expected);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        lutra_on_crash("x.gguf: ", "; do this");
        lutra_on_crash_remove(0, directory);
        lutra_on_crash_remove(1, "/tmp/lutra-is-not-there");
        lutra_on_crash_remove(2, file);
        in_thread ? std::thread(crash).join() : crash();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char buffer[1000];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) {
        said.append(buffer, n);
    }
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1, "exit code 1", expected);
    const std::string line = std::string("lutra: error: x.gguf: ") + expected + "; do this\n";
    check(said == line, "one line", expected, said.c_str());
    check(access(directory, F_OK) != 0, "files are removed", expected);
    unlink(file);
    rmdir(directory);
}

static int overflow(volatile char *above) { // the stack
    volatile char frame[4096];
    frame[0] = *above;
    return *above ? 0 : overflow(frame) + frame[0];
}

static void test_crash() {
    struct {
        const char *expected;
        void (*crash)();
    } const cases[] = {
        {"file.c:7: GGML_ASSERT(a::b /2) failed",
         [] { ggml_abort("/home/x/file.c", 7, "GGML_ASSERT(%s) failed", "a::b\n/2"); }},
        {"native code gave up (SIGABRT)", [] { abort(); }},
        {"native code crashed (SIGSEGV)", [] { raise(SIGSEGV); }},
        {"thrown", [] { throw std::runtime_error("thrown"); }},
        {"out of memory", [] { throw std::bad_alloc(); }},
    };
    for (const auto &c : cases) {
        check_crash(c.expected, c.crash, false);
        check_crash(c.expected, c.crash, true);
    }
    check_crash(
        "native code crashed (SIGSEGV)",
        [] {
            volatile char first = 0;
            overflow(&first);
        },
        false);
}

// ---- LUTRA_KERNELS ------------------------------------------------------------------------------

// All kernels give the same bits, so results cannot tell which one ran. Spies can: this program's
// lutra_kernel_chosen is found before that of ggml-base, asks it, and while `spying` hands a kernel to
// ggml's operations that writes the registry's row of the chosen one into y (in thousands, plus the row
// of the quantizer).
static bool spying = false;
static std::atomic<int> chosen_row[LUTRA_OP_COUNT];

static float mark(lutra_op op, const float *d) {
    return 1000 * chosen_row[op] + d[0];
}

static void spy_gemv(int64_t, int64_t n_strips, const lutra_weights *, const int8_t *, const float *d,
                     float *y) {
    std::fill(y, y + n_strips * LUTRA_ROWS, mark(LUTRA_OP_GEMV, d));
}

template <lutra_op OP>
static void spy_columns(int64_t, int64_t n_strips, const lutra_weights *, int64_t n,
                        const lutra_column *columns) {
    for (int64_t c = 0; c < n; c++) {
        std::fill(columns[c].y, columns[c].y + n_strips * LUTRA_ROWS, mark(OP, columns[c].d));
    }
}

static void spy_dequantize(int64_t k, const lutra_weights *, int, float *y) {
    const float none = 0;
    std::fill(y, y + k, mark(LUTRA_OP_DEQUANTIZE, &none));
}

template <int SB> static void spy_quantize(int64_t k, const float *, int8_t *, float *d) {
    std::fill(d, d + k / SB, (float)chosen_row[LUTRA_OP_QUANTIZE]);
}

extern "C" const lutra_kernel *lutra_kernel_chosen(lutra_op op, int32_t type) {
    static const auto choice = (decltype(&lutra_kernel_chosen))dlsym(RTLD_NEXT, "lutra_kernel_chosen");
    const lutra_kernel *chosen = choice(op, type);
    if (!spying) {
        return chosen;
    }
    chosen_row[op] = (int)(chosen - lutra_kernel_at(0));
    thread_local lutra_kernel spies[LUTRA_OP_COUNT];
    lutra_kernel &spy = spies[op];
    spy = *chosen;
    switch (op) {
    case LUTRA_OP_GEMV:
        spy.fn.gemv = spy_gemv;
        break;
    case LUTRA_OP_BATCH:
        spy.fn.batch = spy_columns<LUTRA_OP_BATCH>;
        break;
    case LUTRA_OP_GEMM:
        spy.fn.gemm = spy_columns<LUTRA_OP_GEMM>;
        break;
    case LUTRA_OP_DEQUANTIZE:
        spy.fn.dequantize = spy_dequantize;
        break;
    default:
        spy.fn.quantize = type == 64 ? spy_quantize<64> : spy_quantize<256>;
    }
    return &spy;
}

// The row that must run when LUTRA_KERNELS is `limit`.
static int expected_row(lutra_op op, int32_t type, int limit) {
    int best = -1;
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const lutra_kernel *k = lutra_kernel_at(i);
        if (k->op == op && k->type == type && k->set <= limit && lutra_set_supported(k->set) &&
            (best < 0 || k->set > lutra_kernel_at(best)->set)) {
            best = i;
        }
    }
    return best;
}

static void test_forced_sets(ggml_type type) {
    Graph g;
    const int64_t k = 2 * ggml_blck_size(type);
    ggml_tensor *w = ggml_new_tensor_2d(g.context, type, k, 64);
    ggml_tensor *one = ggml_new_tensor_2d(g.context, GGML_TYPE_F32, k, 1);
    ggml_tensor *few = ggml_new_tensor_2d(g.context, GGML_TYPE_F32, k, 4);
    ggml_tensor *many = ggml_new_tensor_2d(g.context, GGML_TYPE_F32, k, 20);
    ggml_tensor *ids = ggml_new_tensor_1d(g.context, GGML_TYPE_I32, 1);
    struct {
        lutra_op op;
        ggml_tensor *out;
    } const cases[] = {{LUTRA_OP_GEMV, ggml_mul_mat(g.context, w, one)},
                       {LUTRA_OP_BATCH, ggml_mul_mat(g.context, w, few)},
                       {LUTRA_OP_GEMM, ggml_mul_mat(g.context, w, many)},
                       {LUTRA_OP_DEQUANTIZE, ggml_get_rows(g.context, w, ids)}};
    g.allocate();
    set_weights(w);
    set_random(one);
    set_random(few);
    set_random(many);
    const int32_t row = 3;
    ggml_backend_tensor_set(ids, &row, 0, sizeof(row));
    spying = true;
    for (int set = 0; set < LUTRA_SET_COUNT; set++) {
        const char *name = lutra_set_name((lutra_set)set);
        setenv("LUTRA_KERNELS", name, 1);
        lutra_kernels_reset();
        if (lutra_kernels_error()) { // not on this CPU, or no kernel of it in this build
            continue;
        }
        for (const auto &c : cases) {
            const int quantizer = expected_row(LUTRA_OP_QUANTIZE, ggml_blck_size(type), set);
            const float expected = 1000 * (float)expected_row(c.op, type, set) +
                                   (c.op == LUTRA_OP_DEQUANTIZE ? 0 : (float)quantizer);
            for (float y : g.compute(c.out, 2)) {
                check(y == expected, "runs what LUTRA_KERNELS forces", ggml_type_name(type), name);
            }
        }
    }
    spying = false;
    unsetenv("LUTRA_KERNELS");
    lutra_kernels_reset();
}

int main() {
    test_crash(); // while this process has one thread
    ggml_cpu_init();
    test_capture();
    for (ggml_type type : TYPES) {
        test_mul_mat(type, 1);
        test_views(type, 1);
        test_mul_mat_id(type, 1);
        test_get_rows(type);
        test_refusals(type);
        test_buffers(type);
        test_data_check(type);
        test_forced_sets(type);
    }
    for (ggml_type type : {GGML_TYPE_CB4, GGML_TYPE_CB2_64}) { // a second plane is a column to every type
        test_mul_mat(type, 2);
        test_views(type, 2);
        test_mul_mat_id(type, 2);
    }
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
