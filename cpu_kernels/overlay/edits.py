# SPDX-License-Identifier: MIT
"""The hooks by which Lutra joins llama.cpp, and what an edit is.

What the lines call is in ``cpu_kernels/ggml``. What mends upstream rather than serves Lutra is in
``fixes.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cb_rows import FILE_TYPE_NAMES, FILE_TYPE_OF_TYPE, FILE_TYPES, GGML_TYPES


@dataclass(frozen=True)
class Edit:
    """One anchored edit of one file of llama.cpp.

    ``anchor`` is a line, compared without the white space around it; it must occur exactly once in
    the file. ``inside`` says where: how the line begins that opens the function, enum, struct, array
    or CMake block around it; "" for a line at the top level (an ``#include``). ``overlay.enclosing``
    has the rule. ``text`` is put ``before``, ``after`` or ``instead`` of the anchor.
    """

    file: str
    inside: str
    anchor: str
    place: Literal["before", "after", "instead"]
    text: str


HOOKS: tuple[Edit, ...] = (
    # ---- the types -------------------------------------------------------------------------
    Edit(
        "ggml/include/ggml.h",
        "enum ggml_type {",
        "GGML_TYPE_COUNT   = 43,",
        "instead",
        GGML_TYPES,
    ),
    Edit(
        "ggml/src/ggml.c",
        "",
        '#include "ggml-threading.h"',
        "after",
        '#include "lutra_ggml.h"\n#include "cb.h"\n',
    ),
    Edit(
        "ggml/src/ggml.c",
        "static const struct ggml_type_traits type_traits[",
        "[36] = { // GGML_TYPE_IQ4_NL_4_4",
        "before",
        '#include "type_traits.inc"\n',
    ),
    Edit(
        "ggml/src/ggml.c",
        "size_t ggml_nbytes(",
        "return nbytes;",
        "instead",
        "    return nbytes + lutra_library_bytes(tensor);\n",
    ),
    Edit(
        "ggml/src/ggml.c",
        "static struct ggml_tensor * ggml_new_tensor_impl(",
        "GGML_ASSERT(view_src == NULL || data_size == 0 || data_size + view_offs <= ggml_nbytes(view_src));",
        "after",
        "    data_size += view_src == NULL ? lutra_type_library_bytes(type) : 0;\n",
    ),
    Edit("ggml/src/ggml-quants.c", "", '#include "ggml-quants.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "ggml/src/ggml-quants.c",
        "bool ggml_validate_row_data(",
        "if (nbytes % ggml_type_size(type) != 0) {",
        "before",
        """\
    if (lutra_is_cb(type)) {
        return lutra_check_data(type, data, nbytes);
    }

""",
    ),
    # ---- reading files ---------------------------------------------------------------------
    Edit("ggml/src/gguf.cpp", "", '#include "gguf.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "ggml/src/gguf.cpp",
        "static struct gguf_context * gguf_init_from_reader(",
        "struct ggml_tensor * cur = ggml_new_tensor(ctx_data, info.t.type, GGML_MAX_DIMS, info.t.ne);",
        "instead",
        """\
            struct ggml_tensor * cur =
                ggml_new_tensor(ctx_data, lutra_loaded_type(info.t.type), GGML_MAX_DIMS, info.t.ne);
""",
    ),
    Edit(
        "ggml/src/gguf.cpp",
        "static struct gguf_context * gguf_init_from_reader(",
        "// check that the size of the tensor in bytes is representable",
        "before",
        """\
            if (!lutra_check_shape(&info.t)) {
                ok = false;
                break;
            }

""",
    ),
    # ---- computing -------------------------------------------------------------------------
    Edit(
        "ggml/src/ggml-cpu/traits.cpp", "", '#include "ggml-backend.h"', "after", '#include "lutra_ggml.h"\n'
    ),
    Edit(
        "ggml/src/ggml-cpu/traits.cpp",
        "bool ggml_cpu_extra_compute_forward(",
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
        "bool ggml_cpu_extra_work_size(",
        "bool ggml_cpu_extra_work_size(int n_threads, const struct ggml_tensor * op, size_t * size) {",
        "after",
        """\
    if (lutra_work_size(op, size)) {
        return true;
    }
""",
    ),
    Edit("ggml/src/ggml-cpu/ggml-cpu.cpp", "", '#include "amx/amx.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "ggml/src/ggml-cpu/ggml-cpu.cpp",
        "static bool ggml_backend_cpu_device_supports_op(",
        "// check extra buffer types",
        "before",
        """\
    if (lutra_is_cb_op(op)) {
        return lutra_supports_op(op);
    }

""",
    ),
    # A switch over all types without a default.
    Edit(
        "ggml/src/ggml-cpu/ops.cpp",
        "void ggml_compute_forward_clamp(",
        "case GGML_TYPE_COUNT:",
        "after",
        "        default:\n",
    ),
    # Where the CPU backends are separate libraries (LUTRA_PORTABLE), they are beside libggml.so.
    Edit(
        "ggml/src/ggml-backend-reg.cpp",
        "",
        '#include "ggml-backend-dl.h"',
        "after",
        '#include "lutra_ggml.h"\n',
    ),
    Edit(
        "ggml/src/ggml-backend-reg.cpp",
        "static ggml_backend_reg_t ggml_backend_load_best(",
        "// default search paths: executable directory, current directory",
        "before",
        "        search_paths.push_back(fs::u8path(lutra_library_dir()));\n",
    ),
    # ---- loading models --------------------------------------------------------------------
    Edit(
        "include/llama.h",
        "enum llama_ftype {",
        "LLAMA_FTYPE_GUESSED = 1024, // not specified in the model file",
        "before",
        FILE_TYPES + "\n",
    ),
    Edit("src/llama-mmap.cpp", "", '#include "llama-mmap.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "src/llama-mmap.cpp",
        "struct llama_mmap::impl {",
        "if (numa) { prefetch = 0; }",
        "after",
        "        if (lutra_first_layers_only()) { prefetch = 0; } // pages are read when they are used\n",
    ),
    Edit("src/llama-model-loader.cpp", "", '#include "llama.h"', "after", '#include "loader.h"\n'),
    Edit(
        "src/llama-model-loader.cpp",
        "const char * llama_ftype_name(",
        'case LLAMA_FTYPE_ALL_F32:          name = LLAMA_FTYPE_PREFIX "all F32"; break;',
        "after",
        FILE_TYPE_NAMES,
    ),
    Edit(
        "src/llama-model-loader.cpp",
        "llama_model_loader::llama_model_loader(",
        "case GGML_TYPE_F32:     ftype = LLAMA_FTYPE_ALL_F32;        break;",
        "after",
        FILE_TYPE_OF_TYPE,
    ),
    Edit(
        "src/llama-model-loader.cpp",
        "llama_model_loader::llama_model_loader(",
        '// this is a way to mark that we have "guessed" the file type',
        "before",
        "        lutra_check_file(metadata, n_type);\n\n",
    ),
    Edit(
        "src/llama-model-loader.cpp",
        "bool llama_model_loader::load_all_data(",
        "size_done += n_size;",
        "before",
        "        lutra_check_library(cur);\n        lutra_choose_planes(metadata, cur);\n\n",
    ),
    # ---- several machines ------------------------------------------------------------------
    Edit(
        "ggml/src/ggml-rpc/ggml-rpc.cpp", "", '#include "transport.h"', "after", '#include "lutra_ggml.h"\n'
    ),
    Edit(
        "ggml/src/ggml-rpc/ggml-rpc.cpp",
        "",
        "#define RPC_STATUS_ASSERT(x) if (!(x)) "
        'GGML_ABORT("Remote RPC server crashed or returned malformed response")',
        "instead",
        """\
#define RPC_STATUS_ASSERT(x) if (!(x)) lutra_worker_lost(lutra_worker.c_str())
static thread_local std::string lutra_worker; // whose connection this thread uses
""",
    ),
    Edit(
        "ggml/src/ggml-rpc/ggml-rpc.cpp",
        "class rpc_dispatcher {",
        "socket_ptr       sock;",
        "after",
        "    std::string      endpoint;\n",
    ),
    Edit(
        "ggml/src/ggml-rpc/ggml-rpc.cpp",
        "void rpc_dispatcher::start(",
        "sock = socket_t::connect(host.c_str(), port);",
        "before",
        "    lutra_worker = this->endpoint = endpoint;\n",
    ),
    Edit(
        "ggml/src/ggml-rpc/ggml-rpc.cpp",
        "void rpc_dispatcher::work(",
        "while (running) {",
        "before",
        "    lutra_worker = endpoint;\n",
    ),
    Edit(
        "ggml/src/ggml-rpc/ggml-rpc.cpp",
        "static bool ggml_backend_rpc_device_supports_op(",
        "//TODO: call the remote backend and cache the results",
        "before",
        """\
    if (lutra_is_cb_op(op)) {
        return lutra_is_computable(op);
    }
""",
    ),
    # ---- refusals --------------------------------------------------------------------------
    Edit("src/llama-context.cpp", "", '#include "llama-context.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "src/llama-context.cpp",
        "llama_context * llama_init_from_model(",
        "if (ggml_is_quantized(params.type_v) && params.flash_attn_type != LLAMA_FLASH_ATTN_TYPE_ENABLED) {",
        "before",
        """\
    if (lutra_is_cb(params.type_k) || lutra_is_cb(params.type_v)) {
        LLAMA_LOG_ERROR("%s: CB types are for weights, not for the KV cache\\n", __func__);
        return nullptr;
    }

""",
    ),
    Edit("src/llama-quant.cpp", "", '#include "llama-model-loader.h"', "after", '#include "lutra_ggml.h"\n'),
    Edit(
        "src/llama-quant.cpp",
        "static void llama_model_quantize_impl(",
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
        "static size_t llama_tensor_quantize_impl(",
        "const size_t row_size = ggml_row_size(new_type, n_per_row);",
        "before",
        """\
    if (lutra_is_cb(new_type)) {
        throw std::runtime_error(format("%s is made by lutra convert", ggml_type_name(new_type)));
    }
""",
    ),
)
