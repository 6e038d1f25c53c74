# SPDX-License-Identifier: MIT
"""Where weights come from: Hugging Face directories and GGUF files, read tensor by tensor."""
