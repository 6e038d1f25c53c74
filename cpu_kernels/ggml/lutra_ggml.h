// SPDX-License-Identifier: MIT
// What ggml and llama.cpp ask of Lutra: the edits of the overlay call these functions, nothing else.
//
// A CB tensor is ggml's own tensor with two differences. The libraries lie behind the rows of the first layer
// inside the tensor's bytes, so its data is longer than rows x row size. And a row of two layers counts in
// both places: its address as ggml computes it stands for the number of the row, no more. Views do not count
// the libraries; they find them in the tensor they view.
#ifndef LUTRA_GGML_H
#define LUTRA_GGML_H

#include "ggml.h"
#include "lutra_kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- tensor.c, in ggml-base ----------------------------------------------------------------

GGML_API bool lutra_is_cb(enum ggml_type type);

// Bytes of a type's libraries, 0 for types of ggml's own.
GGML_API size_t lutra_type_library_bytes(enum ggml_type type);

// The same for a tensor; 0 for a view.
GGML_API size_t lutra_library_bytes(const struct ggml_tensor *tensor);

// The libraries of a CB tensor or of a view of one, all of them in a row.
GGML_API const int8_t *lutra_library(const struct ggml_tensor *tensor);

// Where the strip begins that lies `offset` bytes behind the start of a CB tensor or view, as ggml counts.
GGML_API struct lutra_weights lutra_weights_at(const struct ggml_tensor *tensor, size_t offset);

// The type that a tensor of a file gets when it is loaded. With LUTRA_LAYERS=1 in the environment that is its
// first layer alone, whose bytes come first.
GGML_API enum ggml_type lutra_loaded_type(enum ggml_type type);
GGML_API bool lutra_first_layers_only(void);

// NULL, or why LUTRA_LAYERS cannot be obeyed; if it is empty, nothing is asked.
GGML_API const char *lutra_layers_error(void);

// False, with the reason in the log, for a CB tensor that is empty or whose rows do not fill strips.
GGML_API bool lutra_check_shape(const struct ggml_tensor *tensor);

// False, with the reason on stderr, if a super-scale is not finite or a table entry out of range.
GGML_API bool lutra_check_data(enum ggml_type type, const void *data, size_t nbytes);

// The planes of int8 that activations get for products with a CB tensor, or a view of one: 1 unless it was
// given 2. A tensor on a worker has as many.
GGML_API int lutra_planes(const struct ggml_tensor *tensor);
GGML_API void lutra_set_planes(struct ggml_tensor *tensor, int planes);

// Whether op reads or writes a CB tensor, and if it does, whether there are kernels for such an operation.
GGML_API bool lutra_is_cb_op(const struct ggml_tensor *op);
GGML_API bool lutra_is_computable(const struct ggml_tensor *op);

// ---- capture.c, in ggml-base ---------------------------------------------------------------

// A product of a graph, whose operands have been computed, or a lookup of rows.
struct lutra_matmul_inputs {
    struct ggml_tensor *weights;
    const char *name;                 // of the weights
    const struct ggml_tensor *source; // the tensor that is multiplied; NULL for a lookup
    const float *rows;                // its rows [n_rows][k], if they are contiguous; NULL otherwise
    int64_t n_rows;
    int64_t k;
    int64_t n_tokens; // of lutra_copy_matrices; 0 where the weights are one matrix
    int64_t n_used;
};

// False if node is no such thing, or its inputs are not float.
GGML_API bool lutra_capture(const struct ggml_tensor *node, struct lutra_matmul_inputs *out);

// The rows [n_rows][k] that node multiplies, in the order of its columns, wherever they lie.
GGML_API void lutra_copy_rows(const struct ggml_tensor *node, float *out);

// Which of its stacked matrices node multiplies them by, [n_tokens][n_used]: the experts of each token, or
// (n_used is 1) the slice that each row meets.
GGML_API void lutra_copy_matrices(const struct ggml_tensor *node, int32_t *out);

// Lets weights have other data, and returns what it had.
GGML_API void *lutra_replace_data(struct ggml_tensor *weights, void *data);

// ---- crash.cpp, in ggml-base ---------------------------------------------------------------

// From the first call on, native code that cannot go on (an assertion, an uncaught exception, a fatal signal)
// ends the process with code 1 and one line on stderr: "lutra: error: ", before, what happened, after. The
// texts are not copied: they must stay.
GGML_API void lutra_on_crash(const char *before, const char *after);

// What installs the handler for uncaught exceptions of one C++ runtime, then, or now where that has happened.
GGML_API void lutra_on_crash_runtime(void (*install)(void));

// Ends the process so: what happened.
GGML_NORETURN GGML_API void lutra_crash(const char *what);

enum { LUTRA_CRASH_FILES = 32 };

// Which file or empty directory is removed then, for each of LUTRA_CRASH_FILES places, the last place first;
// NULL: none. The path must stay.
GGML_API void lutra_on_crash_remove(int place, const char *path);

// Ends the process, with such a line: the worker at endpoint ("host:port"), which has a part of the model, is
// lost.
GGML_NORETURN GGML_API void lutra_worker_lost(const char *endpoint);

// ---- ops.c, in ggml-cpu --------------------------------------------------------------------

struct ggml_compute_params;

// Whether we can compute op, which is one of those with a CB tensor, here and now.
bool lutra_supports_op(const struct ggml_tensor *op);

// False if op is not ours.
bool lutra_work_size(const struct ggml_tensor *op, size_t *size);
bool lutra_compute_forward(const struct ggml_compute_params *params, struct ggml_tensor *op);

// ---- library_dir.c, in ggml ----------------------------------------------------------------

// The directory that libggml was loaded from; "." if that cannot be known.
const char *lutra_library_dir(void);

#ifdef __cplusplus
}
#endif

#endif
