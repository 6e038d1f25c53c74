# SPDX-License-Identifier: MIT
"""Keys of our own in GGUF files."""

# Ids of tokens that end a text beyond those that llama.cpp has keys for, as text: "7 9".
END_TOKENS_KEY = "tokenizer.lutra.end_token_ids"
