# SPDX-License-Identifier: MIT
"""Learning codebooks and encoding weights with them."""

from pyquant.codebook import encode, learn

__all__ = ["encode", "learn"]
