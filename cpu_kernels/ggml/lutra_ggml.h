// What ggml and llama.cpp ask of Lutra: the edits of the overlay call these functions, nothing else.
//
// A CB tensor is ggml's own tensor with one difference: the library follows the rows inside the
// tensor's bytes, so its data is longer than rows x row size. Views do not count the library; they
// find it behind the rows of the tensor they view.
#ifndef LUTRA_GGML_H
#define LUTRA_GGML_H

#include "ggml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- tensor.c, in ggml-base ----------------------------------------------------------------

GGML_API bool lutra_is_cb(enum ggml_type type);

// Bytes of a type's library, 0 for types of ggml's own.
GGML_API size_t lutra_type_library_bytes(enum ggml_type type);

// The same for a tensor; 0 for a view.
GGML_API size_t lutra_library_bytes(const struct ggml_tensor *tensor);

// The library of a CB tensor or of a view of one.
GGML_API const int8_t *lutra_library(const struct ggml_tensor *tensor);

// False, with the reason in the log, for a CB tensor that is empty or whose rows do not fill strips.
GGML_API bool lutra_check_shape(const struct ggml_tensor *tensor);

// False, with the reason on stderr, if a super-scale is not finite or a table entry out of range.
GGML_API bool lutra_check_data(enum ggml_type type, const void *data, size_t nbytes);

// ---- ops.c, in ggml-cpu --------------------------------------------------------------------

struct ggml_compute_params;

// Whether op reads or writes a CB tensor, and if it does, whether we can compute it.
bool lutra_is_cb_op(const struct ggml_tensor *op);
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
