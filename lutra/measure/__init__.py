# SPDX-License-Identifier: MIT
"""What a file is worth: perplexity, divergence, answers, speed, and whether kernels compute it right."""
