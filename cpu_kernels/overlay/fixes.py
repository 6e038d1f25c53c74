# SPDX-License-Identifier: MIT
"""Edits that mend llama.cpp itself: what upstream could take as it is, with the reason.

When a release of upstream has one, its entry goes.
"""

from __future__ import annotations

from dataclasses import dataclass

from edits import Edit

GGUF = "ggml/src/gguf.cpp"
READ = "static struct gguf_context * gguf_init_from_reader("
CMAKE = "ggml/src/CMakeLists.txt"
SERVER = "tools/server"
ADD = "ggml_add_cpu_backend_variant("
VARIANTS = "if (GGML_CPU_ALL_VARIANTS)"


@dataclass(frozen=True)
class Fix:
    """One fault of upstream: the sentence that a pull request would begin with, and its edits."""

    why: str
    edits: tuple[Edit, ...]


FIXES: tuple[Fix, ...] = (
    Fix(
        "gguf: a tensor's info is filled field by field and then copied and passed to ggml functions, "
        "with view_src, data and op left uninitialised.",
        (
            Edit(
                GGUF,
                READ,
                "struct gguf_tensor_info info;",
                "instead",
                "        struct gguf_tensor_info info = {};\n",
            ),
        ),
    ),
    Fix(
        "gguf: a type id inside the enum's range but without type traits (a gap between ids) gets past the "
        "range check, and its name, NULL, is printed with %s.",
        (
            Edit(
                GGUF,
                READ,
                "if (info.t.type < 0 || info.t.type >= GGML_TYPE_COUNT) {",
                "instead",
                """\
            if (info.t.type < 0 || info.t.type >= GGML_TYPE_COUNT ||
                !ggml_type_name(info.t.type)) {
""",
            ),
        ),
    ),
    Fix(
        "gguf: a shape of exactly INT64_MAX elements passes the overflow check, though the message says "
        "that it does not, and ggml_new_tensor() aborts on it.",
        (
            Edit(
                GGUF,
                READ,
                "if (INT64_MAX / info.t.ne[i] < current_nelements) {",
                "instead",
                "                        if (INT64_MAX / info.t.ne[i] <= current_nelements) {\n",
            ),
        ),
    ),
    Fix(
        "gguf: a dimension of 0 makes the running product 0, so that the other dimensions are not checked "
        "for overflow, and ggml_new_tensor() aborts on them.",
        (
            Edit(
                GGUF,
                READ,
                "current_nelements *= info.t.ne[i];",
                "instead",
                "                     current_nelements *= MAX(info.t.ne[i], 1);\n",
            ),
        ),
    ),
    Fix(
        "gguf: a header may claim tensors of any size; with no_alloc off the size is allocated, which "
        "aborts, before anything finds that the file is shorter.",
        (
            Edit(
                GGUF,
                "struct gguf_reader {",
                "uint64_t tell() const {",
                "before",
                """\
    bool has(uint64_t size) const {
        return size <= nbytes_remain;
    }

""",
            ),
            Edit(
                GGUF,
                READ,
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
        ),
    ),
    Fix(
        "ggml-cpu: GGML_CPU_ALL_VARIANTS on Linux has I8MM only together with SVE, so Snapdragon X and "
        "Apple cores in a virtual machine, which lack SVE, run without I8MM.",
        (
            Edit(
                CMAKE,
                VARIANTS,
                f"{ADD}armv8.6_1    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8)",
                "before",
                f"            {ADD}armv8.6_0    DOTPROD FP16_VECTOR_ARITHMETIC MATMUL_INT8)\n",
            ),
        ),
    ),
    Fix(
        "ggml-cpu: without KleidiAI nothing in the SME variants uses SME, and gcc before 14 cannot compile "
        "them.",
        (
            Edit(
                CMAKE,
                VARIANTS,
                f"{ADD}armv9.2_1    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8 SME)",
                "instead",
                "            # Lutra: no armv9.2_1\n",
            ),
            Edit(
                CMAKE,
                VARIANTS,
                f"{ADD}armv9.2_2    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8 SVE2 SME)",
                "instead",
                "            # Lutra: no armv9.2_2\n",
            ),
        ),
    ),
    Fix(
        "ggml-rpc: writing to a connection that the other side has closed raises SIGPIPE, so a client that "
        "goes away ends the server, and a server that goes away ends the client without a word.",
        (
            Edit(
                "ggml/src/ggml-rpc/transport.cpp",
                "bool socket_t::impl::send_data(",
                "ssize_t n = send(fd, (const char *)data + bytes_sent, size_to_send, 0);",
                "instead",
                """\
        int flags = 0;
#ifdef MSG_NOSIGNAL
        flags = MSG_NOSIGNAL;
#endif
        ssize_t n = send(fd, (const char *)data + bytes_sent, size_to_send, flags);
""",
            ),
        ),
    ),
    Fix(
        "ggml-rpc: when a machine loses its power or its network, the other side waits for it for ever.",
        (
            Edit(
                "ggml/src/ggml-rpc/transport.cpp",
                "static bool set_no_delay(",
                "// set TCP_NODELAY to disable Nagle's algorithm",
                "before",
                """\
#ifdef TCP_USER_TIMEOUT
    // silence for 25 s ends a connection; a machine that computes for longer still answers probes
    const int idle = 10, interval = 5, probes = 3, milliseconds = 25000;
    setsockopt(sockfd, SOL_SOCKET, SO_KEEPALIVE, &flag, sizeof(flag));
    setsockopt(sockfd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(sockfd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    setsockopt(sockfd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
    setsockopt(sockfd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds));
#endif
""",
            ),
        ),
    ),
    Fix(
        "llama: graphs with a gated delta net are reserved with nodes for every token of a batch, though the "
        "chunks that need them are those of one sequence, which takes 22 KB of memory per node.",
        (
            Edit(
                "src/llama-context.cpp",
                "void llama_context::sched_reserve() {",
                "const size_t max_nodes = this->graph_max_nodes(n_tokens);",
                "instead",
                """\
    const size_t max_nodes = this->graph_max_nodes(std::min(n_tokens, cparams.n_ctx_seq));
""",
            ),
        ),
    ),
    Fix(
        "llama: BitNet b1.58 2B4T has a squared ReLU, the first BitNet SiLU, which the graph has for both.",
        (
            Edit(
                "src/models/bitnet.cpp",
                "void llama_model_bitnet::load_arch_hparams(",
                "ml.get_key(LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps);",
                "after",
                """\

    std::string activation;
    ml.get_key(LLM_KV_HIDDEN_ACT, activation, false);
    hparams.llm_ffn_op = activation == "relu2" ? LLM_FFN_RELU_SQR : LLM_FFN_SILU;
""",
            ),
            Edit(
                "src/models/bitnet.cpp",
                "llama_model_bitnet::graph::graph(",
                "LLM_FFN_SILU, LLM_FFN_PAR, il);",
                "instead",
                "                hparams.llm_ffn_op, LLM_FFN_PAR, il);\n",
            ),
        ),
    ),
    Fix(
        "common: the log, results included, is written by a thread that the end of the process cuts off, so "
        "a tool's last lines can be lost.",
        (
            Edit(
                "common/log.cpp",
                "struct common_log * common_log_main(",
                "log = new common_log;",
                "after",
                "        std::atexit([] { common_log_flush(log); });\n",
            ),
        ),
    ),
    Fix(
        "server: a signal that comes between the handler's installation and the main loop is lost, as "
        "start_loop() sets the flag again that terminate() has cleared.",
        (
            Edit(
                f"{SERVER}/server-queue.h",
                "struct server_queue {",
                "bool running  = false;",
                "instead",
                "    bool running  = true; // until terminate(), which may come before start_loop()\n",
            ),
            Edit(
                f"{SERVER}/server-queue.cpp",
                "void server_queue::start_loop(",
                "running = true;",
                "instead",
                "    // not `running = true`: terminate() may have come before\n",
            ),
        ),
    ),
    Fix(
        "server: with a client that waits for an answer the server does not end on SIGTERM: the main loop is "
        "over and no result will come, but the request's thread, which is joined, waits for one.",
        (
            Edit(
                f"{SERVER}/server-task.h",
                "struct server_task_result_error : server_task_result {",
                "std::string err_msg;",
                "after",
                """\

    virtual server_task_result * clone() const override {
        return new server_task_result_error(*this);
    }
""",
            ),
            Edit(
                f"{SERVER}/server-context.cpp",
                "void server_context::start_loop(",
                "impl->queue_tasks.start_loop(params.sleep_idle_seconds * 1000);",
                "after",
                """\

    auto stopping = std::make_unique<server_task_result_error>();
    stopping->err_type = ERROR_TYPE_UNAVAILABLE;
    stopping->err_msg  = "the server is stopping";
    impl->queue_results.broadcast(std::move(stopping));
""",
            ),
        ),
    ),
    Fix(
        "server: SIGTERM and SIGINT can deadlock, as their handler takes the lock of the task queue, which "
        "the thread that it interrupts may hold.",
        (
            Edit(
                f"{SERVER}/server.cpp",
                "",
                "#include <thread> // for std::thread::hardware_concurrency",
                "after",
                """\
#if !defined(_WIN32)
#include <unistd.h>

static int shutdown_pipe[2]; // from the signal handler to a thread, which may take locks
#endif
""",
            ),
            Edit(
                f"{SERVER}/server.cpp",
                "static inline void signal_handler(",
                "shutdown_handler(signal);",
                "before",
                """\
#if !defined(_WIN32)
    const char number = (char) signal;
    if (write(shutdown_pipe[1], &number, 1) == 1) {
        return;
    }
#endif
""",
            ),
            Edit(
                f"{SERVER}/server.cpp",
                "int llama_server(",
                "struct sigaction sigint_action;",
                "before",
                """\
        if (pipe(shutdown_pipe) != 0) {
            SRV_ERR("%s", "no pipe for signals\\n");
            return 1;
        }
        std::thread([] {
            char number = 0;
            while (read(shutdown_pipe[0], &number, 1) != 1) {
            }
            shutdown_handler(number);
        }).detach();
""",
            ),
        ),
    ),
)
