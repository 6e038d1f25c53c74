"""liblutra_quant.so through cffi; ``native/quant.h`` says what each function does."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import cffi
import numpy as np

from lutra.runtime.paths import lib_path

ffi = cffi.FFI()
ffi.cdef("""
    struct lutra_shape { int32_t bits, pair, group, tables, sb; };
    struct lutra_learner;
    struct lutra_learner *lutra_learner_new(const struct lutra_shape *, int64_t blocks, const float *w,
                                            const float *importance);
    void lutra_learner_free(struct lutra_learner *);
    double lutra_learner_step(struct lutra_learner *, int64_t first, int64_t blocks, bool scales,
                              double memory, double revive, int candidates, int threads, int8_t *library);
    double lutra_encode(const struct lutra_shape *, int64_t rows, int64_t k, const float *w,
                        const float *importance, const int8_t *library, int candidates, int threads,
                        uint8_t *codes, uint16_t *selectors, uint16_t *d);
    bool lutra_pack(const struct lutra_shape *, int64_t rows, int64_t k, const uint8_t *codes,
                    const uint16_t *selectors, const uint16_t *d, int threads, uint8_t *strips);
    struct lutra_group_form { float form[32][32], feedback[32][32], weight[32][2], inverse[32][32]; };
    bool lutra_feedback(const struct lutra_shape *, int64_t rows, int64_t k, const float *w,
                        const struct lutra_group_form *, const float *coupling, const int8_t *library,
                        const float *d, bool again, int threads, uint8_t *codes, uint16_t *selectors,
                        double *loss);
    void lutra_look_up(const struct lutra_shape *, int64_t rows, int64_t k, const float *entries,
                       const uint8_t *codes, const uint16_t *selectors, const float *d, float *w);
    void lutra_sum_entries(const struct lutra_shape *, int64_t rows, int64_t k, const float *x,
                           const uint8_t *codes, const uint16_t *selectors, const float *d, double *sums);
    int64_t lutra_find_bad(int64_t n, const float *w, float limit);
""")


@cache
def native() -> Any:
    """The library, opened once. Raises LutraError when it is not built."""
    return ffi.dlopen(str(lib_path("lutra_quant")))


def pointer(array: np.ndarray | None, ctype: str) -> Any:
    """A C-contiguous array as ``ctype *``; NULL for None."""
    return ffi.NULL if array is None else ffi.from_buffer(f"{ctype}[]", array)


def thread_count(threads: int | None) -> int:
    """``threads``, or the number of CPUs this process may run on."""
    return threads or len(os.sched_getaffinity(0))
