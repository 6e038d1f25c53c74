# SPDX-License-Identifier: MIT
"""Keys of our own in GGUF files."""

# Ids of tokens that end a text beyond those that llama.cpp has keys for, as text: "7 9".
END_TOKENS_KEY = "tokenizer.lutra.end_token_ids"

# Names of tensors whose activations get two planes of int8: cpu_kernels/ggml/loader.cpp.
PLANES_KEY = "lutra.planes"
