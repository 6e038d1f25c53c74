# SPDX-License-Identifier: MIT
"""liblutra_quant.so through cffi; ``native/quant.h`` says what each function does."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import cffi
import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.installed import library

ABI = 3  # of quant.h; both go up together when a function that is called here changes
INTERFACE = """
    int lutra_quant_abi(void);
    enum lutra_status { LUTRA_DONE, LUTRA_NO_MEMORY, LUTRA_REFUSED };
    struct lutra_shape { int32_t bits, pair, group, tables, sb; };
    struct lutra_learner;
    enum lutra_status lutra_learner_new(const struct lutra_shape *, int64_t blocks, const float *w,
                                        const float *importance, struct lutra_learner **);
    void lutra_learner_free(struct lutra_learner *);
    enum lutra_status lutra_learner_step(struct lutra_learner *, int64_t first, int64_t blocks, bool scales,
                                         double memory, double revive, int candidates, int threads,
                                         int8_t *library, double *error);
    enum lutra_status lutra_encode(const struct lutra_shape *, int64_t rows, int64_t k, const float *w,
                                   const float *importance, const int8_t *library, int candidates,
                                   int threads, uint8_t *codes, uint16_t *selectors, uint16_t *d,
                                   double *error);
    enum lutra_status lutra_encode_exact(const struct lutra_shape *, int64_t rows, int64_t k, const float *w,
                                         const int8_t *library, int threads, uint8_t *codes,
                                         uint16_t *selectors, uint16_t *d, bool *exact);
    enum lutra_status lutra_encode_bipolar(const struct lutra_shape *, int bits, int64_t rows, int64_t k,
                                           const float *w, int scales, const float *scale, int step,
                                           int tries, int threads, uint8_t *levels, uint16_t *selectors,
                                           uint16_t *d);
    enum lutra_status lutra_layer_learn(const struct lutra_shape *, int64_t rows, int64_t k, const float *w,
                                        const float *importance, const int8_t *first,
                                        const uint16_t *selectors, const uint16_t *d, int threads,
                                        int8_t *library);
    enum lutra_status lutra_layer_encode(const struct lutra_shape *, int64_t rows, int64_t k, const float *w,
                                         const float *importance, const int8_t *first,
                                         const uint16_t *selectors, const uint16_t *d, const int8_t *library,
                                         int threads, uint8_t *codes, double *error);
    enum lutra_status lutra_pack(const struct lutra_shape *, int64_t rows, int64_t k, const uint8_t *codes,
                                 const uint16_t *selectors, const uint16_t *d, int threads, uint8_t *strips);
    enum lutra_status lutra_pack_second(const struct lutra_shape *, int64_t rows, int64_t k,
                                        const uint8_t *codes, int threads, uint8_t *second);
    struct lutra_group_form { float form[32][32], factor[32][32], weight[32][2], inverse[32][32]; };
    enum lutra_status lutra_gptq(const struct lutra_shape *, int64_t rows, int64_t k, const float *w,
                                 const int8_t *first, const struct lutra_group_form *, const float *coupling,
                                 const int8_t *library, const float *d, bool again, int threads,
                                 uint8_t *codes, uint16_t *selectors, double *loss);
    enum lutra_status lutra_look_up(const struct lutra_shape *, int64_t rows, int64_t k,
                                    const float *entries, const uint8_t *codes, const uint16_t *selectors,
                                    const float *d, float *w);
    enum lutra_status lutra_sum_entries(const struct lutra_shape *, int64_t rows, int64_t k, const float *x,
                                        const uint8_t *codes, const uint16_t *selectors, const float *d,
                                        double *sums);
    int64_t lutra_find_bad(int64_t n, const float *w);
"""
ffi = cffi.FFI()
ffi.cdef(INTERFACE)

_DTYPES = {
    "float": (np.float32,),
    "double": (np.float64,),
    "int8_t": (np.int8,),
    "uint8_t": (np.uint8,),
    "uint16_t": (np.uint16, np.float16),  # halves travel as bits
}


@cache
def native() -> Any:
    """The library, opened once. Raises LutraError when it is not built, or from other sources than these."""
    path, hint = library("lutra_quant"), "run 'pip install .' or set LUTRA_LIB_DIR"
    if not path.is_file():
        raise LutraError(f"{path}: not built; {hint}")
    try:
        opened = ffi.dlopen(str(path))
    except OSError as error:
        raise LutraError(f"{path}: cannot be loaded ({error}); {hint}") from None
    try:
        abi = opened.lutra_quant_abi()
    except AttributeError:  # from before there was a number
        abi = 0
    if abi != ABI:
        raise LutraError(f"{path}: of another version of Lutra (interface {abi}, not {ABI}); {hint}")
    return opened


def check(status: int, doing: str) -> None:
    """Raise what a function's ``enum lutra_status`` stands for: MemoryError or ValueError."""
    if status == native().LUTRA_NO_MEMORY:
        raise MemoryError(doing)
    if status == native().LUTRA_REFUSED:
        raise ValueError(f"{doing}: shapes or values are out of range")


def pointer(array: NDArray[Any] | None, ctype: str) -> Any:
    """A C-contiguous array of that type as ``ctype *``; NULL for None. Raises ValueError for any other."""
    if array is None:
        return ffi.NULL
    if array.dtype not in _DTYPES[ctype] or not array.flags.c_contiguous:
        raise ValueError(f"an array of {array.dtype}, strides {array.strides}: needed {ctype}, contiguous")
    return ffi.from_buffer(f"{ctype}[]", array)


def thread_count(threads: int | None) -> int:
    """``threads``, or the number of CPUs this process may run on. Raises ValueError for less than one."""
    if threads is None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"{threads} threads: needed at least 1")
    return threads
