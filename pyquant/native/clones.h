// SPDX-License-Identifier: MIT
// Inner loops are compiled once per instruction set, and the best is taken when the library is loaded.
#ifndef LUTRA_CLONES_H
#define LUTRA_CLONES_H

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define LUTRA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LUTRA_CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

#endif
