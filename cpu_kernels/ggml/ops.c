// SPDX-License-Identifier: MIT
// The operations of ggml's graph on CB weights, for ggml-cpu: MUL_MAT, MUL_MAT_ID and GET_ROWS.
//
// A product is computed in two phases with a barrier between them:
//
//   1. all threads quantize the activations, each an equal share of the super-blocks, to one plane of
//      int8 or two, and thread 0 sorts the columns by the matrix of weights they meet (a MUL_MAT_ID has one
//      matrix per expert, a MUL_MAT one per src0 slice, which broadcast columns share);
//   2. the threads take jobs from a shared counter, so that a slow core takes fewer. A job is a range
//      of strips, each times a tile of columns that is small enough to stay in L2 while the strips
//      stream by.
//
// Two planes are two columns for the kernels. What the second one comes to is added to y at once.
#include "lutra_ggml.h"

#include "ggml-backend.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "lutra_ref.h"

enum {
    CACHE_LINE = 64,
    TILE_BYTES = 256 * 1024, // of quantized activations
    TILE_MIN = 16,
    TILE_MAX = 128,
    ROUNDS = 5,     // jobs per thread, if all are equally fast
    SHARES = 16,    // of a thread's equal share of the work: the shortest job
    GRAIN_MAX = 16, // strips that gemm kernels decode together; 2 strips are a cache line of y
    REST = TILE_MAX / 2 * GRAIN_MAX * LUTRA_ROWS // floats of the second plane's y at a time, 32 KiB
};

// ---- what is ours --------------------------------------------------------------------------

bool lutra_supports_op(const struct ggml_tensor *op) {
    if (!lutra_is_computable(op) || lutra_kernels_error()) {
        return false;
    }
    const struct ggml_tensor *w = op->src[0];
    return !w->buffer ||
           ggml_backend_buffer_is_host(w->buffer); // or ggml's repacking ones, which change the layout
}

// ---- products ------------------------------------------------------------------------------

// A product and its work buffer.
struct product {
    const struct lutra_cb_format *format;
    const struct ggml_tensor *w; // weights [k, rows, matrices...]
    const struct ggml_tensor *x; // activations [k, ...]
    struct ggml_tensor *y;
    int64_t k;
    int64_t n_strips;   // of one matrix
    int64_t n_matrices; // slices of w
    int64_t n_x;        // rows of x
    int64_t n_columns;  // columns of y
    int planes;         // of int8, 1 or 2, for each row of x
    lutra_gemv_fn *gemv;
    lutra_batch_fn *batch;
    lutra_gemm_fn *gemm;

    int8_t *q;                    // [n_x][planes][k]
    float *d;                     // [n_x][planes][k / super-block]
    struct lutra_column *columns; // [n_columns], of the first plane, sorted by matrix
    int64_t *first;               // [n_matrices + 1]: matrix m has columns first[m] to first[m + 1]
};

// The product of op with its work buffer at `at`; *end is where the buffer ends.
static struct product product_of(struct ggml_tensor *op, uintptr_t at, uintptr_t *end) {
    const struct ggml_tensor *w = op->src[0];
    const struct ggml_tensor *x = op->src[1];
    struct product p = {
        .format = lutra_cb_format_of_type(w->type),
        .w = w,
        .x = x,
        .y = op,
        .k = w->ne[0],
        .n_strips = w->ne[1] / LUTRA_ROWS,
        .n_matrices = w->ne[2] * w->ne[3],
        .n_x = ggml_nrows(x),
        .n_columns = ggml_nrows(op),
        .planes = lutra_planes(w),
        .gemv = lutra_kernel_chosen(LUTRA_OP_GEMV, w->type)->fn.gemv,
        .batch = lutra_kernel_chosen(LUTRA_OP_BATCH, w->type)->fn.batch,
        .gemm = lutra_kernel_chosen(LUTRA_OP_GEMM, w->type)->fn.gemm,
    };
    at = GGML_PAD(at, CACHE_LINE);
    p.q = (int8_t *)at;
    at += GGML_PAD(p.n_x * p.planes * p.k, CACHE_LINE);
    p.d = (float *)at;
    at += GGML_PAD(p.n_x * p.planes * (p.k / p.format->sb) * sizeof(float), CACHE_LINE);
    p.columns = (struct lutra_column *)at;
    at += GGML_PAD(p.n_columns * sizeof(struct lutra_column), CACHE_LINE);
    p.first = (int64_t *)at;
    at += (p.n_matrices + 1) * sizeof(int64_t);
    *end = at;
    return p;
}

static void quantize_share(const struct product *p, int ith, int nth) {
    const int sb = p->format->sb;
    lutra_quantize_fn *quantize = lutra_kernel_chosen(LUTRA_OP_QUANTIZE, sb)->fn.quantize;
    const struct ggml_tensor *x = p->x;
    const int64_t per_row = p->k / sb;
    const int64_t blocks = p->n_x * per_row;
    const int64_t end = blocks * (ith + 1) / nth;
    for (int64_t block = blocks * ith / nth; block < end;) {
        const int64_t row = block / per_row;
        const int64_t start = block % per_row;
        const int64_t n = MIN(per_row - start, end - block);
        const int64_t i1 = row % x->ne[1];
        const int64_t i2 = row / x->ne[1] % x->ne[2];
        const int64_t i3 = row / x->ne[1] / x->ne[2];
        const char *data = (const char *)x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
        const float *from = (const float *)data + start * sb;
        int8_t *q = p->q + row * p->planes * p->k + start * sb;
        float *d = p->d + row * p->planes * per_row + start;
        quantize(n * sb, from, q, d);
        for (int64_t s = 0; p->planes == 2 && s < n; s++) {
            float rest[256]; // the largest super-block
            lutra_cb_rest(sb, from + s * sb, q + s * sb, d[s], rest);
            quantize(sb, rest, q + p->k + s * sb, d + per_row + s);
        }
        block += n;
    }
}

static struct lutra_column column_of(const struct product *p, int64_t x_row, char *y) {
    return (struct lutra_column){
        .q = p->q + x_row * p->planes * p->k,
        .d = p->d + x_row * p->planes * (p->k / p->format->sb),
        .y = (float *)y,
    };
}

// MUL_MAT: slice (i2, i3) of the activations meets slice (i2 / r2, i3 / r3) of the weights.
static void sort_columns(const struct product *p) {
    const struct ggml_tensor *w = p->w;
    const struct ggml_tensor *x = p->x;
    const int64_t r2 = x->ne[2] / w->ne[2];
    const int64_t r3 = x->ne[3] / w->ne[3];
    int64_t n = 0;
    for (int64_t m = 0; m < p->n_matrices; m++) {
        p->first[m] = n;
        const int64_t i2 = m % w->ne[2] * r2;
        const int64_t i3 = m / w->ne[2] * r3;
        for (int64_t j3 = i3; j3 < i3 + r3; j3++) {
            for (int64_t j2 = i2; j2 < i2 + r2; j2++) {
                for (int64_t j1 = 0; j1 < x->ne[1]; j1++) {
                    char *y = (char *)p->y->data + j1 * p->y->nb[1] + j2 * p->y->nb[2] + j3 * p->y->nb[3];
                    p->columns[n++] = column_of(p, (j3 * x->ne[2] + j2) * x->ne[1] + j1, y);
                }
            }
        }
    }
    p->first[p->n_matrices] = n;
}

// MUL_MAT_ID: column (slot, token) meets the expert ids[slot, token]. A counting sort.
static void sort_columns_by_expert(const struct product *p) {
    const struct ggml_tensor *ids = p->y->src[2];
    const struct ggml_tensor *x = p->x;
    int64_t *next = p->first + 1; // becomes first[m + 1] once the columns of m are placed
    memset(p->first, 0, (p->n_matrices + 1) * sizeof(int64_t));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t token = 0; token < ids->ne[1]; token++) {
            for (int64_t slot = 0; slot < ids->ne[0]; slot++) {
                const char *id = (const char *)ids->data + slot * ids->nb[0] + token * ids->nb[1];
                const int32_t expert = *(const int32_t *)id;
                GGML_ASSERT(expert >= 0 && expert < p->n_matrices);
                if (pass == 0) {
                    next[expert]++;
                } else {
                    char *y = (char *)p->y->data + slot * p->y->nb[1] + token * p->y->nb[2];
                    p->columns[next[expert]++] = column_of(p, token * x->ne[1] + slot % x->ne[1], y);
                }
            }
        }
        if (pass == 0) { // counts to starts
            int64_t start = 0;
            for (int64_t m = 0; m < p->n_matrices; m++) {
                const int64_t count = next[m];
                next[m] = start;
                start += count;
            }
        }
    }
}

// Strips [strip, strip + n_strips) of matrix m times n columns.
static void run_kernel(const struct product *p, int64_t m, int64_t strip, int64_t n_strips, int64_t n,
                       const struct lutra_column *columns) {
    const struct ggml_tensor *w = p->w;
    const struct lutra_weights weights = lutra_weights_at(
        w, m % w->ne[2] * w->nb[2] + m / w->ne[2] * w->nb[3] + strip * LUTRA_ROWS * w->nb[1]);
    if (n == 1) {
        p->gemv(p->k, n_strips, &weights, columns->q, columns->d, columns->y);
    } else if (n <= LUTRA_BATCH) {
        p->batch(p->k, n_strips, &weights, n, columns);
    } else {
        p->gemm(p->k, n_strips, &weights, n, columns);
    }
}

// The same for columns [column, column + n) of matrix m, n <= TILE_MAX / planes, with all their planes.
static void multiply(const struct product *p, int64_t m, int64_t strip, int64_t n_strips, int64_t column,
                     int64_t n) {
    struct lutra_column tile[TILE_MAX];
    float rest[REST];
    const int64_t end = strip + n_strips;
    const int64_t step = p->planes == 1 ? n_strips : REST / LUTRA_ROWS / n / GRAIN_MAX * GRAIN_MAX;
    for (; strip < end; strip += step) {
        const int64_t rows = MIN(step, end - strip) * LUTRA_ROWS;
        for (int64_t i = 0; i < n; i++) {
            struct lutra_column *c = &tile[i * p->planes];
            c[0] = p->columns[column + i];
            c[0].y += strip * LUTRA_ROWS;
            if (p->planes == 2) {
                c[1] = (struct lutra_column){c->q + p->k, c->d + p->k / p->format->sb, rest + i * rows};
            }
        }
        run_kernel(p, m, strip, rows / LUTRA_ROWS, n * p->planes, tile);
        for (int64_t i = 0; p->planes == 2 && i < n; i++) {
            for (int64_t row = 0; row < rows; row++) {
                tile[2 * i].y[row] += tile[2 * i + 1].y[row];
            }
        }
    }
}

static int64_t tiles_of(const struct product *p, int64_t m, int64_t tile) {
    return (p->first[m + 1] - p->first[m] + tile - 1) / tile;
}

// Strips times tiles of columns, and how threads share them.
struct work {
    int64_t total;
    int64_t grain; // jobs start at multiples of this
    int64_t nth;
};

// Job j of round r is a SHARES-th of a thread's equal share, times the round's part: long jobs first,
// which stream from memory, short ones last, so that no thread waits long for a slower core.
static int64_t job_start(const struct work *w, int64_t job) {
    static const int done[ROUNDS + 1] = {0, 8, 12, 14, 15, SHARES}; // before the round
    const int64_t round = job / w->nth;
    if (round >= ROUNDS) {
        return w->total;
    }
    const int64_t part = done[round + 1] - done[round];
    const int64_t shares = done[round] * w->nth + job % w->nth * part;
    return w->total * shares / (SHARES * w->nth) / w->grain * w->grain;
}

static void compute_product(const struct ggml_compute_params *params, struct ggml_tensor *op) {
    const int ith = params->ith;
    const int nth = params->nth;
    uintptr_t end;
    const struct product p = product_of(op, (uintptr_t)params->wdata, &end);
    GGML_ASSERT(end <= (uintptr_t)params->wdata + params->wsize);

    if (ith == 0) {
        if (op->op == GGML_OP_MUL_MAT_ID) {
            sort_columns_by_expert(&p);
        } else {
            sort_columns(&p);
        }
        ggml_threadpool_chunk_set(params->threadpool, nth); // jobs 0 to nth - 1 are given out already
    }
    quantize_share(&p, ith, nth);
    ggml_barrier(params->threadpool);

    const int64_t tile = MAX(TILE_MIN, MIN(TILE_MAX, TILE_BYTES / p.k)) / p.planes;
    struct work work = {.nth = nth};
    for (int64_t m = 0; m < p.n_matrices; m++) {
        work.total += tiles_of(&p, m, tile) * p.n_strips;
    }
    work.grain = MAX(2, MIN(GRAIN_MAX, work.total / (nth * SHARES) / 2 * 2));

    // The work is one sequence of strips: by matrix, in a matrix by tile, in a tile by strip. A thread's
    // jobs only move forward in it.
    int64_t m = 0;
    int64_t base = 0; // where matrix m starts
    for (int64_t job = ith; job < ROUNDS * nth; job = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t stop = job_start(&work, job + 1);
        for (int64_t at = job_start(&work, job); at < stop;) {
            while (at >= base + tiles_of(&p, m, tile) * p.n_strips) {
                base += tiles_of(&p, m++, tile) * p.n_strips;
            }
            const int64_t strip = (at - base) % p.n_strips;
            const int64_t column = p.first[m] + (at - base) / p.n_strips * tile;
            const int64_t n_strips = MIN(stop - at, p.n_strips - strip);
            multiply(&p, m, strip, n_strips, column, MIN(tile, p.first[m + 1] - column));
            at += n_strips;
        }
    }
}

// ---- rows ----------------------------------------------------------------------------------

static void get_rows(const struct ggml_compute_params *params, struct ggml_tensor *op) {
    const struct ggml_tensor *w = op->src[0];
    const struct ggml_tensor *ids = op->src[1];
    lutra_dequantize_fn *dequantize = lutra_kernel_chosen(LUTRA_OP_DEQUANTIZE, w->type)->fn.dequantize;
    const int64_t n = ggml_nelements(ids);
    for (int64_t i = params->ith; i < n; i += params->nth) {
        const int64_t i0 = i % ids->ne[0];
        const int64_t i1 = i / ids->ne[0] % ids->ne[1];
        const int64_t i2 = i / ids->ne[0] / ids->ne[1];
        const char *id = (const char *)ids->data + i0 * ids->nb[0] + i1 * ids->nb[1] + i2 * ids->nb[2];
        const int32_t row = *(const int32_t *)id;
        GGML_ASSERT(row >= 0 && row < w->ne[1]);
        const struct lutra_weights strip =
            lutra_weights_at(w, i1 * w->nb[2] + i2 * w->nb[3] + row / LUTRA_ROWS * LUTRA_ROWS * w->nb[1]);
        char *y = (char *)op->data + i0 * op->nb[1] + i1 * op->nb[2] + i2 * op->nb[3];
        dequantize(w->ne[0], &strip, row % LUTRA_ROWS, (float *)y);
    }
}

// ---- hooks ---------------------------------------------------------------------------------

bool lutra_work_size(const struct ggml_tensor *op, size_t *size) {
    if (!lutra_is_cb_op(op)) {
        return false;
    }
    *size = 0;
    if (op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID) {
        struct ggml_tensor copy = *op;
        uintptr_t end;
        product_of(&copy, 0, &end);
        *size = end + CACHE_LINE; // the buffer need not start at a cache line
    }
    return true;
}

bool lutra_compute_forward(const struct ggml_compute_params *params, struct ggml_tensor *op) {
    if (op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID && op->op != GGML_OP_GET_ROWS) {
        return false;
    }
    if (!lutra_is_cb_op(op)) {
        return false;
    }
    GGML_ASSERT(lutra_supports_op(op));
    if (op->op == GGML_OP_GET_ROWS) {
        get_rows(params, op);
    } else {
        compute_product(params, op);
    }
    return true;
}
