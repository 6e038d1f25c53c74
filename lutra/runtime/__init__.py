# SPDX-License-Identifier: MIT
"""llama.cpp with our kernels, from Python: models, tools, the kernel registry."""
