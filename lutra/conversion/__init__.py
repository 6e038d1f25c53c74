# SPDX-License-Identifier: MIT
"""From a source of weights to a GGUF of any type."""
