// SPDX-License-Identifier: MIT
// lutra_greedy FILE: reads a rendered prompt from standard input and prints the greedy answer, as
// `lutra chat -p ... --temp 0` does. For machines without Python: emulated ones, in our tests.
#include "llama.h"

#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

static void die(const char *what) {
    fprintf(stderr, "lutra_greedy: %s\n", what);
    exit(1);
}

static std::string piece(const llama_vocab *vocab, llama_token token, bool special) {
    std::string text(256, '\0');
    int n = llama_token_to_piece(vocab, token, text.data(), (int)text.size(), 0, special);
    if (n < 0) {
        text.resize(-n);
        n = llama_token_to_piece(vocab, token, text.data(), (int)text.size(), 0, special);
    }
    text.resize(n);
    return text;
}

// BOS once, whether or not the template has written it.
static std::vector<llama_token> tokenize(const llama_vocab *vocab, std::string text) {
    if (llama_vocab_get_add_bos(vocab)) {
        const std::string bos = piece(vocab, llama_vocab_bos(vocab), true);
        if (text.compare(0, bos.size(), bos) == 0) {
            text.erase(0, bos.size());
        }
    }
    std::vector<llama_token> tokens(text.size() + 8);
    const int n =
        llama_tokenize(vocab, text.data(), (int)text.size(), tokens.data(), (int)tokens.size(), true, true);
    if (n <= 0) {
        die("the prompt cannot be tokenized");
    }
    tokens.resize(n);
    return tokens;
}

static void log_errors(ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR || std::string(text).compare(0, 6, "lutra:") == 0) {
        fputs(text, stderr);
    }
}

// The library of ggml's CPU code that is loaded: with LUTRA_PORTABLE the variant chosen for this CPU.
static int print_variant(dl_phdr_info *library, size_t, void *) {
    if (const char *name = strstr(library->dlpi_name, "libggml-cpu")) {
        fprintf(stderr, "%s\n", name);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        die("usage: lutra_greedy FILE < PROMPT");
    }
    const std::string prompt(std::istreambuf_iterator<char>(std::cin), {});
    llama_log_set(log_errors, nullptr);
    ggml_backend_load_all(); // where the CPU backends are separate libraries
    dl_iterate_phdr(print_variant, nullptr);
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        die("the model cannot be loaded");
    }
    const llama_vocab *vocab = llama_model_get_vocab(model);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = std::min(llama_model_n_ctx_train(model), 4096);
    params.n_batch = params.n_ubatch = std::min(512u, params.n_ctx);
    params.n_threads = params.n_threads_batch = (int)std::clamp(std::thread::hardware_concurrency(), 1u, 4u);
    llama_context *context = llama_init_from_model(model, params);
    if (!context) {
        die("no context");
    }
    llama_sampler *sampler = llama_sampler_init_greedy();

    std::vector<llama_token> pending = tokenize(vocab, prompt);
    size_t cached = 0;
    while (cached + pending.size() <= llama_n_ctx(context)) {
        for (size_t start = 0; start < pending.size(); start += params.n_batch) {
            const size_t n = std::min(pending.size() - start, (size_t)params.n_batch);
            if (llama_decode(context, llama_batch_get_one(&pending[start], (int)n)) != 0) {
                die("computing failed");
            }
        }
        cached += pending.size();
        const llama_token token = llama_sampler_sample(sampler, context, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        fputs(piece(vocab, token, false).c_str(), stdout);
        fflush(stdout);
        pending = {token};
    }
    puts("");
    llama_sampler_free(sampler);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
