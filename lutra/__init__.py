"""Lutra: large language models on Arm CPUs from codebook GGUF files."""

__version__ = "0.1.0"
