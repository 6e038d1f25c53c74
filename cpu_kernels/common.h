// SPDX-License-Identifier: MIT
// What the kernels of all instruction sets share: the sizes of a type, and the two ways in which a count
// becomes a constant.
//
// The body of a kernel is inline code for all types and counts. `cb` (4 for CB4, 25 for CB25), `sb` and the
// sizes of tiles are constants at every call, so the compiler makes straight code for each.
#ifndef LUTRA_COMMON_H
#define LUTRA_COMMON_H

#include "dispatch/kernels.h"

#define LUTRA_INLINE static inline __attribute__((always_inline))

// Weights of a row that a body may prepare at a time, for all strips. A wider row takes several spans, and
// the tests have rows of three.
enum { LUTRA_SPAN = 16384 };

// Bytes of a chunk, of the second layer's codes of a chunk, of a strip-super-block, of a table of the first
// and of the second library.
LUTRA_INLINE int64_t cb_chunk_bytes(int cb) {
    return cb == 2    ? sizeof(struct lutra_cb2_chunk)
           : cb == 3  ? sizeof(struct lutra_cb3_chunk)
           : cb == 25 ? sizeof(struct lutra_cb25_chunk)
                      : sizeof(struct lutra_cb4_chunk); // CB5 and CB6 too
}

LUTRA_INLINE int64_t cb_second_bytes(int cb) {
    return cb == 5 ? sizeof(struct lutra_cb5_second) : cb == 6 ? sizeof(struct lutra_cb6_second) : 0;
}

LUTRA_INLINE int64_t cb_block_bytes(int cb, int sb) {
    return 2 * LUTRA_ROWS + sb / LUTRA_CHUNK * cb_chunk_bytes(cb);
}

LUTRA_INLINE int64_t cb_table_bytes(int cb) {
    return cb == 2 ? 2 * 16 : cb == 3 ? 8 : cb == 25 ? 2 * 32 : 16;
}

LUTRA_INLINE int64_t cb_second_table(int cb) {
    return cb == 5 ? 2 : cb == 6 ? 2 * 16 : 0;
}

// Weights, moved on by some strip-super-blocks.
LUTRA_INLINE struct lutra_weights cb_block(int cb, int sb, struct lutra_weights w, int64_t blocks) {
    w.strips += blocks * cb_block_bytes(cb, sb);
    if (cb_second_bytes(cb)) {
        w.second += blocks * (sb / LUTRA_CHUNK) * cb_second_bytes(cb);
    }
    return w;
}

// From a strip-super-block to its chunk c.
LUTRA_INLINE struct lutra_weights cb_chunk(int cb, struct lutra_weights block, int64_t c) {
    block.strips += 2 * LUTRA_ROWS + c * cb_chunk_bytes(cb);
    if (cb_second_bytes(cb)) {
        block.second += c * cb_second_bytes(cb);
    }
    return block;
}

// From a chunk to another one of its super-block, or to where the next super-block begins.
LUTRA_INLINE struct lutra_weights cb_next(int cb, struct lutra_weights chunk, int64_t chunks) {
    chunk.strips -= 2 * LUTRA_ROWS;
    return cb_chunk(cb, chunk, chunks);
}

// Runs `call` with N = n, a constant from 1 to `most` <= LUTRA_BATCH; nothing for any other n.
#define LUTRA_CONSTANT(n, most, call)                                                                        \
    switch (n) {                                                                                             \
        LUTRA_CASE(1, most, call)                                                                            \
        LUTRA_CASE(2, most, call)                                                                            \
        LUTRA_CASE(3, most, call)                                                                            \
        LUTRA_CASE(4, most, call)                                                                            \
        LUTRA_CASE(5, most, call)                                                                            \
        LUTRA_CASE(6, most, call)                                                                            \
        LUTRA_CASE(7, most, call)                                                                            \
        LUTRA_CASE(8, most, call)                                                                            \
    default:                                                                                                 \
        break;                                                                                               \
    }
#define LUTRA_CASE(n, most, call)                                                                            \
    case n:                                                                                                  \
        if (n <= (most)) {                                                                                   \
            enum { N = n };                                                                                  \
            call;                                                                                            \
        }                                                                                                    \
        break;

// Walks from `at` to `end` in tiles: `call` with TILE as a constant, `widest` as often as it fits, then at
// most once each 4, 2 and 1. `at` is where the tile starts.
#define LUTRA_TILES(at, end, widest, call)                                                                   \
    for (; (end) - (at) >= (widest); (at) += (widest)) {                                                     \
        enum { TILE = (widest) };                                                                            \
        call;                                                                                                \
    }                                                                                                        \
    LUTRA_LAST_TILE(at, end, widest, 4, call)                                                                \
    LUTRA_LAST_TILE(at, end, widest, 2, call)                                                                \
    LUTRA_LAST_TILE(at, end, widest, 1, call)
#define LUTRA_LAST_TILE(at, end, widest, size, call)                                                         \
    if ((size) < (widest) && (end) - (at) >= (size)) {                                                       \
        enum { TILE = (size) };                                                                              \
        call;                                                                                                \
        (at) += (size);                                                                                      \
    }

#endif
