// SPDX-License-Identifier: MIT
// Upstream's kernels for the bench: per type the ones that upstream itself would run on a CPU with the
// instructions this file is compiled for (see ggml_repack_get_optimal_repack_type in its repack.cpp).
#include "bench.h"

#include "quants.h" // of ggml-cpu; first, as it declares the blocks with C's names

#include "ggml-quants.h"
#include "repack.h"

#include "lutra_ref.h"

#include <cstddef>
#include <vector>

#if defined(__ARM_FEATURE_SVE)
#include <arm_sve.h>
#endif

// What the kernels use of ggml-cpu.c, which is not part of this program.
extern "C" {
#if defined(__x86_64__)
float ggml_table_f32_f16[1 << 16]; // the value of every fp16 number
#elif defined(__ARM_FEATURE_SVE)
int ggml_cpu_get_sve_cnt(void) {
    return (int)svcntb();
}
#endif
}

namespace {

using quantize_fn = void(const float *x, void *y, int64_t k);
using dequantize_fn = void(const void *x, float *y, int64_t k);
using vec_dot_fn = void(int n, float *s, size_t bs, const void *vx, size_t bx, const void *vy, size_t by,
                        int nrc);
using gemm_fn = void(int n, float *s, size_t bs, const void *vx, const void *vy, int nr, int nc);

// What runs a job: gemv and gemm (repacked rows), or vec_dot (rows as they are in the file), or one of
// the conversions.
struct code {
    size_t activation_bytes = 0;       // of 256 activations
    quantize_fn *quantize = nullptr;   // one column
    quantize_fn *quantize_4 = nullptr; // four interleaved columns, as gemm wants them
    gemm_fn *gemv = nullptr;
    gemm_fn *gemm = nullptr;
    vec_dot_fn *vec_dot = nullptr;
    dequantize_fn *dequantize = nullptr;
};

size_t column_bytes(const code &c, int64_t k) {
    return c.activation_bytes * (size_t)(k / 256);
}

// Columns in fours go to gemm, the rest to gemv or vec_dot.
int64_t columns_in_fours(const code &c, const operands &o) {
    return c.gemm ? o.columns / 4 * 4 : 0;
}

void prepare(const bench_kernel *kernel, operands *o) {
    const code &c = *static_cast<const code *>(kernel->code);
    const size_t bytes = column_bytes(c, o->k);
    char *a = static_cast<char *>(bench_alloc(bytes * (size_t)o->columns));
    o->activations = a;
    const int64_t four = columns_in_fours(c, *o);
    for (int64_t i = 0; i < four; i += 4) {
        c.quantize_4(o->x + i * o->k, a + bytes * (size_t)i, o->k);
    }
    for (int64_t i = four; i < o->columns && c.quantize; i++) {
        c.quantize(o->x + i * o->k, a + bytes * (size_t)i, o->k);
    }
}

void run_repacked(const bench_kernel *kernel, const operands *o) {
    const code &c = *static_cast<const code *>(kernel->code);
    const char *a = static_cast<const char *>(o->activations);
    const int k = (int)o->k, rows = (int)o->rows;
    const int64_t four = columns_in_fours(c, *o);
    if (four) {
        c.gemm(k, o->y, (size_t)rows, o->weights, a, (int)four, rows);
    }
    for (int64_t i = four; i < o->columns; i++) {
        c.gemv(k, o->y + i * rows, (size_t)rows, o->weights, a + column_bytes(c, k) * (size_t)i, 1, rows);
    }
}

// Tiles of 16 rows x 16 columns, as upstream's matrix multiplication runs them.
void run_vec_dot(const bench_kernel *kernel, const operands *o) {
    const code &c = *static_cast<const code *>(kernel->code);
    const char *a = static_cast<const char *>(o->activations);
    const size_t row_bytes = kernel->block.bytes * (size_t)(o->k / kernel->block.weights);
    for (int64_t column = 0; column < o->columns; column += 16) {
        for (int64_t row = 0; row < o->rows; row += 16) {
            for (int64_t i = column; i < o->columns && i < column + 16; i++) {
                for (int64_t r = row; r < o->rows && r < row + 16; r++) {
                    c.vec_dot((int)o->k, o->y + i * o->rows + r, 0, o->weights + row_bytes * (size_t)r, 0,
                              a + column_bytes(c, o->k) * (size_t)i, 0, 1);
                }
            }
        }
    }
}

void run_dequantize(const bench_kernel *kernel, const operands *o) {
    static_cast<const code *>(kernel->code)->dequantize(o->weights, o->y, o->k);
}

void run_quantize(const bench_kernel *kernel, const operands *o) {
    static_cast<const code *>(kernel->code)->quantize(o->x, o->activations, o->k);
}

std::vector<bench_kernel> kernels;

void add(const char *name, lutra_op op, const char *type, const bench_block &b, const code &c,
         void (*run)(const bench_kernel *, const operands *)) {
    kernels.push_back({name, LUTRA_BENCH_SET, op, type, b, new code(c), prepare, run});
}

constexpr size_t bytes_q8_0 = 8 * sizeof(block_q8_0);
constexpr size_t bytes_q8_K = sizeof(block_q8_K);

#define BLOCK(struct_, weights, rows, n_scales)                                                              \
    bench_block {                                                                                            \
        weights, rows, sizeof(struct_), offsetof(struct_, d), n_scales                                       \
    }

// A type whose rows upstream interleaves at load time: `rows` rows in pieces of `piece` bytes.
#define REPACKED(label, type, act, rows, piece, struct_, weights, n_scales)                                  \
    do {                                                                                                     \
        const bench_block b = BLOCK(struct_, weights, rows, n_scales);                                       \
        code c{bytes_##act, quantize_row_##act, ggml_quantize_mat_##act##_4x##piece};                        \
        c.gemv = ggml_gemv_##type##_##rows##x##piece##_##act;                                                \
        c.gemm = ggml_gemm_##type##_##rows##x##piece##_##act;                                                \
        add("ggml_gemv_" #type "_" #rows "x" #piece "_" #act, LUTRA_OP_GEMV, label, b, c, run_repacked);     \
        add("ggml_gemm_" #type "_" #rows "x" #piece "_" #act, LUTRA_OP_BATCH, label, b, c, run_repacked);    \
        add("ggml_gemm_" #type "_" #rows "x" #piece "_" #act, LUTRA_OP_GEMM, label, b, c, run_repacked);     \
    } while (0)

// A type whose rows stay as they are in the file.
#define PLAIN(label, type, act, weights, n_scales)                                                           \
    do {                                                                                                     \
        const bench_block b = BLOCK(block_##type, weights, 1, n_scales);                                     \
        code c{bytes_##act, quantize_row_##act};                                                             \
        c.vec_dot = ggml_vec_dot_##type##_##act;                                                             \
        for (const lutra_op op : {LUTRA_OP_GEMV, LUTRA_OP_BATCH, LUTRA_OP_GEMM}) {                           \
            add("ggml_vec_dot_" #type "_" #act, op, label, b, c, run_vec_dot);                               \
        }                                                                                                    \
    } while (0)

#define DEQUANTIZE(label, type, weights, n_scales)                                                           \
    do {                                                                                                     \
        const bench_block b = BLOCK(block_##type, weights, 1, n_scales);                                     \
        code c;                                                                                              \
        c.dequantize = reinterpret_cast<dequantize_fn *>(dequantize_row_##type);                             \
        add("dequantize_row_" #type, LUTRA_OP_DEQUANTIZE, label, b, c, run_dequantize);                      \
    } while (0)

#define QUANTIZE(label, act)                                                                                 \
    add("quantize_row_" #act, LUTRA_OP_QUANTIZE, label, {}, {bytes_##act, quantize_row_##act}, run_quantize)

void add_all() {
#if defined(__AVX2__) || (defined(__ARM_FEATURE_SVE) && defined(__ARM_FEATURE_MATMUL_INT8))
    REPACKED("Q4_0", q4_0, q8_0, 8, 8, block_q4_0x8, 32, 8);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    REPACKED("Q4_0", q4_0, q8_0, 4, 8, block_q4_0x4, 32, 4);
#elif defined(__ARM_FEATURE_DOTPROD)
    REPACKED("Q4_0", q4_0, q8_0, 4, 4, block_q4_0x4, 32, 4);
#else
    PLAIN("Q4_0", q4_0, q8_0, 32, 1);
#endif

#if defined(__AVX2__)
    REPACKED("IQ4_NL", iq4_nl, q8_0, 8, 8, block_iq4_nlx8, 32, 8);
#elif defined(__ARM_FEATURE_DOTPROD)
    REPACKED("IQ4_NL", iq4_nl, q8_0, 4, 4, block_iq4_nlx4, 32, 4);
#else
    PLAIN("IQ4_NL", iq4_nl, q8_0, 32, 1);
#endif

#if defined(__AVX2__) || defined(__ARM_FEATURE_MATMUL_INT8)
    REPACKED("Q4_K", q4_K, q8_K, 8, 8, block_q4_Kx8, 256, 16);
#elif defined(__ARM_FEATURE_DOTPROD)
    REPACKED("Q4_K", q4_K, q8_K, 8, 4, block_q4_Kx8, 256, 16);
#else
    PLAIN("Q4_K", q4_K, q8_K, 256, 2);
#endif

#if defined(__AVX512F__)
    REPACKED("Q2_K", q2_K, q8_K, 8, 8, block_q2_Kx8, 256, 16);
#else
    PLAIN("Q2_K", q2_K, q8_K, 256, 2);
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
    REPACKED("Q8_0", q8_0, q8_0, 4, 8, block_q8_0x4, 32, 4);
#elif defined(__ARM_FEATURE_DOTPROD)
    REPACKED("Q8_0", q8_0, q8_0, 4, 4, block_q8_0x4, 32, 4);
#else
    PLAIN("Q8_0", q8_0, q8_0, 32, 1);
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
    REPACKED("Q5_K", q5_K, q8_K, 8, 8, block_q5_Kx8, 256, 16);
    REPACKED("Q6_K", q6_K, q8_K, 8, 8, block_q6_Kx8, 256, 8);
#elif defined(__ARM_FEATURE_DOTPROD)
    REPACKED("Q5_K", q5_K, q8_K, 8, 4, block_q5_Kx8, 256, 16);
    REPACKED("Q6_K", q6_K, q8_K, 8, 4, block_q6_Kx8, 256, 8);
#else
    PLAIN("Q5_K", q5_K, q8_K, 256, 2);
    PLAIN("Q6_K", q6_K, q8_K, 256, 1);
#endif

    PLAIN("Q3_K", q3_K, q8_K, 256, 1);
    PLAIN("IQ2_XS", iq2_xs, q8_K, 256, 1);
    PLAIN("IQ2_S", iq2_s, q8_K, 256, 1);
    PLAIN("IQ3_S", iq3_s, q8_K, 256, 1);

    DEQUANTIZE("Q4_0", q4_0, 32, 1);
    DEQUANTIZE("IQ4_NL", iq4_nl, 32, 1);
    DEQUANTIZE("Q8_0", q8_0, 32, 1);
    DEQUANTIZE("Q6_K", q6_K, 256, 1);
    DEQUANTIZE("Q5_K", q5_K, 256, 2);
    DEQUANTIZE("Q4_K", q4_K, 256, 2);
    DEQUANTIZE("Q3_K", q3_K, 256, 1);
    DEQUANTIZE("Q2_K", q2_K, 256, 2);
    DEQUANTIZE("IQ2_XS", iq2_xs, 256, 1);
    DEQUANTIZE("IQ2_S", iq2_s, 256, 1);
    DEQUANTIZE("IQ3_S", iq3_s, 256, 1);

    QUANTIZE("Q8_0", q8_0);
    QUANTIZE("Q8_K", q8_K);

    kernels.push_back(bench_kernel{});
}

} // namespace

const bench_kernel *bench_upstream_kernels() {
    if (kernels.empty()) {
        add_all();
#if defined(__x86_64__)
        for (int h = 0; h < 1 << 16; h++) {
            ggml_table_f32_f16[h] = lutra_f16_to_f32((uint16_t)h);
        }
#endif
    }
    return kernels.data();
}
