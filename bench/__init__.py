# SPDX-License-Identifier: MIT
"""The kernel bench: programs, exact traces, the cycle model, the roofline and the reports.

`scripts/bench_kernels` is the command; docs/BENCH.md is the protocol.
"""
