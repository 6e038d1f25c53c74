"""Every change that Lutra makes to llama.cpp.

An edit names a file, one line of it (the anchor, compared without the white space around it, which
must occur exactly once) and the lines to put ``before``, ``after`` or ``instead`` of that line.
What the lines call is in ``cpu_kernels/ggml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Edit:
    """One anchored edit of one file of llama.cpp."""

    file: str
    anchor: str
    place: Literal["before", "after", "instead"]
    text: str


EDITS: tuple[Edit, ...] = (
    # ---- the types -------------------------------------------------------------------------
    Edit(
        "ggml/include/ggml.h",
        "GGML_TYPE_COUNT   = 43,",
        "instead",
        """\
        GGML_TYPE_CB2     = 402, // Lutra: see cpu_kernels/formats/cb.h
        GGML_TYPE_CB3     = 403,
        GGML_TYPE_CB4     = 404,
        GGML_TYPE_CB2_64  = 422,
        GGML_TYPE_CB3_64  = 423,
        GGML_TYPE_CB4_64  = 424,
        GGML_TYPE_COUNT   = 425,
""",
    ),
    Edit(
        "ggml/src/ggml.c",
        '#include "ggml-threading.h"',
        "after",
        '#include "lutra_ggml.h"\n#include "cb.h"\n',
    ),
    Edit(
        "ggml/src/ggml.c",
        "[36] = { // GGML_TYPE_IQ4_NL_4_4",
        "before",
        '#include "type_traits.inc"\n',
    ),
    Edit(
        "ggml/src/ggml.c", "return nbytes;", "instead", "    return nbytes + lutra_library_bytes(tensor);\n"
    ),
    Edit(
        "ggml/src/ggml.c",
        "GGML_ASSERT(view_src == NULL || data_size == 0 || data_size + view_offs <= ggml_nbytes(view_src));",
        "after",
        "    data_size += view_src == NULL ? lutra_type_library_bytes(type) : 0;\n",
    ),
    Edit("ggml/src/ggml-quants.c", '#include "ggml-quants.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "ggml/src/ggml-quants.c",
        "if (nbytes % ggml_type_size(type) != 0) {",
        "before",
        """\
    if (lutra_is_cb(type)) {
        return lutra_check_data(type, data, nbytes);
    }

""",
    ),
    # ---- reading files ---------------------------------------------------------------------
    Edit("ggml/src/gguf.cpp", '#include "gguf.h"', "after", '#include "lutra_ggml.h"\n'),
    # Left uninitialised by upstream; lutra_library_bytes() reads info.t.view_src.
    Edit(
        "ggml/src/gguf.cpp",
        "struct gguf_tensor_info info;",
        "instead",
        "        struct gguf_tensor_info info = {};\n",
    ),
    # Ids between upstream's types and ours have no name.
    Edit(
        "ggml/src/gguf.cpp",
        "if (info.t.type < 0 || info.t.type >= GGML_TYPE_COUNT) {",
        "instead",
        """\
            if (info.t.type < 0 || info.t.type >= GGML_TYPE_COUNT ||
                !ggml_type_name(info.t.type)) {
""",
    ),
    Edit(
        "ggml/src/gguf.cpp",
        "// check that the size of the tensor in bytes is representable",
        "before",
        """\
            if (!lutra_check_shape(&info.t)) {
                ok = false;
                break;
            }

""",
    ),
    # As strict as ggml_new_tensor(), which aborts: it does not let a dimension of 0 hide the others.
    Edit(
        "ggml/src/gguf.cpp",
        "if (INT64_MAX / info.t.ne[i] < current_nelements) {",
        "instead",
        "                        if (INT64_MAX / info.t.ne[i] <= current_nelements) {\n",
    ),
    Edit(
        "ggml/src/gguf.cpp",
        "current_nelements *= info.t.ne[i];",
        "instead",
        "                     current_nelements *= MAX(info.t.ne[i], 1);\n",
    ),
    # A header may claim any size: refused before it is allocated, which would abort.
    Edit(
        "ggml/src/gguf.cpp",
        "uint64_t tell() const {",
        "before",
        """\
    bool has(uint64_t size) const {
        return size <= nbytes_remain;
    }

""",
    ),
    Edit(
        "ggml/src/gguf.cpp",
        "// compute the exact size needed for the new ggml_context",
        "before",
        """\
        if (!params.no_alloc && !gr.has(ctx->size)) {
            GGML_LOG_ERROR("%s: the file ends before its tensors do\\n", __func__);
            gguf_free(ctx);
            return nullptr;
        }

""",
    ),
    # ---- computing -------------------------------------------------------------------------
    Edit("ggml/src/ggml-cpu/traits.cpp", '#include "ggml-backend.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "ggml/src/ggml-cpu/traits.cpp",
        "bool ggml_cpu_extra_compute_forward(struct ggml_compute_params * params, struct ggml_tensor * op) {",
        "after",
        """\
    if (lutra_compute_forward(params, op)) {
        return true;
    }
""",
    ),
    Edit(
        "ggml/src/ggml-cpu/traits.cpp",
        "bool ggml_cpu_extra_work_size(int n_threads, const struct ggml_tensor * op, size_t * size) {",
        "after",
        """\
    if (lutra_work_size(op, size)) {
        return true;
    }
""",
    ),
    Edit("ggml/src/ggml-cpu/ggml-cpu.cpp", '#include "amx/amx.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "ggml/src/ggml-cpu/ggml-cpu.cpp",
        "// check extra buffer types",
        "before",
        """\
    if (lutra_is_cb_op(op)) {
        return lutra_supports_op(op);
    }

""",
    ),
    # A switch over all types without a default.
    Edit("ggml/src/ggml-cpu/ops.cpp", "case GGML_TYPE_COUNT:", "after", "        default:\n"),
    # Where the CPU backends are separate libraries (LUTRA_PORTABLE), they are beside libggml.so.
    Edit(
        "ggml/src/ggml-backend-reg.cpp",
        '#include "ggml-backend-dl.h"',
        "after",
        '#include "lutra_ggml.h"\n',
    ),
    Edit(
        "ggml/src/ggml-backend-reg.cpp",
        "// default search paths: executable directory, current directory",
        "before",
        "        search_paths.push_back(fs::u8path(lutra_library_dir()));\n",
    ),
    # With LUTRA_PORTABLE: a variant for I8MM without SVE (Snapdragon X, Apple in a virtual machine).
    Edit(
        "ggml/src/CMakeLists.txt",
        "ggml_add_cpu_backend_variant(armv8.6_1    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8)",
        "before",
        "            ggml_add_cpu_backend_variant(armv8.6_0    DOTPROD FP16_VECTOR_ARITHMETIC MATMUL_INT8)\n",
    ),
    # None for SME: without KleidiAI nothing in them uses it, and gcc cannot compile it before 14.
    Edit(
        "ggml/src/CMakeLists.txt",
        "ggml_add_cpu_backend_variant(armv9.2_1    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8 SME)",
        "instead",
        "            # Lutra: no armv9.2_1\n",
    ),
    Edit(
        "ggml/src/CMakeLists.txt",
        "ggml_add_cpu_backend_variant(armv9.2_2    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8 SVE2 SME)",
        "instead",
        "            # Lutra: no armv9.2_2\n",
    ),
    # ---- loading models --------------------------------------------------------------------
    Edit(
        "include/llama.h",
        "LLAMA_FTYPE_GUESSED = 1024, // not specified in the model file",
        "before",
        """\
        LLAMA_FTYPE_MOSTLY_CB2           = 402, // Lutra
        LLAMA_FTYPE_MOSTLY_CB3           = 403, // Lutra
        LLAMA_FTYPE_MOSTLY_CB4           = 404, // Lutra

""",
    ),
    Edit("src/llama-model-loader.cpp", '#include "llama.h"', "after", '#include "loader.h"\n'),
    Edit(
        "src/llama-model-loader.cpp",
        'case LLAMA_FTYPE_ALL_F32:          name = LLAMA_FTYPE_PREFIX "all F32"; break;',
        "after",
        """\
        case LLAMA_FTYPE_MOSTLY_CB2:       name = LLAMA_FTYPE_PREFIX "CB2"; break;
        case LLAMA_FTYPE_MOSTLY_CB3:       name = LLAMA_FTYPE_PREFIX "CB3"; break;
        case LLAMA_FTYPE_MOSTLY_CB4:       name = LLAMA_FTYPE_PREFIX "CB4"; break;
""",
    ),
    Edit(
        "src/llama-model-loader.cpp",
        "case GGML_TYPE_F32:     ftype = LLAMA_FTYPE_ALL_F32;        break;",
        "after",
        """\
            case GGML_TYPE_CB2_64:
            case GGML_TYPE_CB2:     ftype = LLAMA_FTYPE_MOSTLY_CB2;     break;
            case GGML_TYPE_CB3_64:
            case GGML_TYPE_CB3:     ftype = LLAMA_FTYPE_MOSTLY_CB3;     break;
            case GGML_TYPE_CB4_64:
            case GGML_TYPE_CB4:     ftype = LLAMA_FTYPE_MOSTLY_CB4;     break;
""",
    ),
    Edit(
        "src/llama-model-loader.cpp",
        '// this is a way to mark that we have "guessed" the file type',
        "before",
        "        lutra_check_file(metadata, n_type);\n\n",
    ),
    Edit(
        "src/llama-model-loader.cpp",
        "size_done += n_size;",
        "before",
        "        lutra_check_library(cur);\n\n",
    ),
    # ---- refusals --------------------------------------------------------------------------
    Edit("src/llama-context.cpp", '#include "llama-context.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "src/llama-context.cpp",
        "if (ggml_is_quantized(params.type_v) && params.flash_attn_type != LLAMA_FLASH_ATTN_TYPE_ENABLED) {",
        "before",
        """\
    if (lutra_is_cb(params.type_k) || lutra_is_cb(params.type_v)) {
        LLAMA_LOG_ERROR("%s: CB types are for weights, not for the KV cache\\n", __func__);
        return nullptr;
    }

""",
    ),
    Edit("src/llama-quant.cpp", '#include "llama-model-loader.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "src/llama-quant.cpp",
        "quantize_state_impl qs(*model, params);",
        "before",
        """\
    for (const auto & it : ml.weights_map) {
        if (lutra_is_cb(it.second.tensor->type)) {
            throw std::runtime_error(format("'%s' is %s already: quantize the original model",
                it.first.c_str(), ggml_type_name(it.second.tensor->type)));
        }
    }

""",
    ),
    Edit(
        "src/llama-quant.cpp",
        "const size_t row_size = ggml_row_size(new_type, n_per_row);",
        "before",
        """\
    if (lutra_is_cb(new_type)) {
        throw std::runtime_error(format("%s is made by lutra convert", ggml_type_name(new_type)));
    }
""",
    ),
    # ---- the tools' output -----------------------------------------------------------------
    # Upstream leaves its log, results included, to a thread that the end of the process cuts off.
    Edit(
        "common/log.cpp",
        "log = new common_log;",
        "after",
        "        std::atexit([] { common_log_flush(log); });\n",
    ),
)
