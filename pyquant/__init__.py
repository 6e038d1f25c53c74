# SPDX-License-Identifier: MIT
"""Learning codebooks and encoding weights with them."""

from pyquant.codebook import encode, learn
from pyquant.layers import encode_layers, in_order, learn_second

__all__ = ["encode", "encode_layers", "in_order", "learn", "learn_second"]
