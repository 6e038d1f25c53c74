// SPDX-License-Identifier: MIT
// The CB family: codebook weights, one selector byte per group, one library per tensor.
// This header is the definition of the format (version 1); docs/FORMAT.md explains it in prose.
//
//     w[k] = d * table[selector][code]           one weight per code (CB3, CB4)
//     w[k], w[k+16] = d * table[selector][code]  a pair of weights per code (CB2, CB25)
//     w[k] = d * (table[selector][code] + second[selector][code2])   the sum of two layers (CB5, CB6)
//
//   group        32 consecutive weights of a row, one selector byte
//   super-block  256 (or 64) consecutive weights of a row, one fp16 scale d
//   strip        8 consecutive rows, the unit that is interleaved
//   chunk        64 weights x 8 rows: 16 selectors and the codes
//   library      256 tables of int8 entries in [-127, 127], one library per tensor and layer
//   layer        codes with a library of their own; the second one shares selectors and d with the first
//
// Bits per weight, libraries not counted (b bits per code, p weights per code):
//
//     sum over layers of b/p + 8/32 + 16/super_block
//
// cb_types.h lists the types and their sizes.
//
// A tensor of R rows x K columns (R a multiple of 8, K of the super-block; the row counts of all
// higher dimensions multiplied into R) is stored as
//
//     strip 0 | strip 1 | ... | strip R/8-1 | library                      one layer
//     strip 0 | ... | strip R/8-1 | library | second library | codes of strip 0 | ... | R/8-1    two
//
//     strip  = K/SB strip-super-blocks, in order of k
//     strip-super-block = d[8] (fp16, row order), then SB/64 chunks
//     chunk  = selector[8][2] (row, group), then the codes of 64 weights x 8 rows
//     codes of a strip, in the second layer = K/64 times the codes of 64 weights x 8 rows
//
// So a tensor of two layers begins with the bytes of one of its first layer alone, which is a tensor of
// another type: CB5 and CB6 begin with CB4. The sum of two entries is taken modulo 256, and whoever encodes
// uses no codes whose sum leaves [-127, 127].
//
// Codes. A *lane vector* is 16 codes, one per byte position j. With one weight per code a group
// has two (weights j and 16+j), with pairs it has one (code j stands for weights j and 16+j).
// The lane vectors of a chunk are numbered row by row, in a row group by group, in a group half
// by half. Each LANES of them share VECTORS vectors of 16 bytes; byte j of the vectors holds code
// j of the lane vectors. Which bit goes where is the only thing that depends on b; cb_types.h has the
// pictures. The bits of one lane vector, vector by vector from bit 0 up, are the bits of its codes.
//
//   b = 4   CB4: byte j of a vector = weight j (low nibble) and 16+j (high) of one group of one row.
//           CB2: byte j = pair j of group 0 (low nibble) and of group 1 (high) of one row.
//
//   b = 1   Bit i of byte j: weight j of lane vector i. CB5's second layer: rows 2 i and 2 i + 1 share vector
//   i.
//
//   b = 5   CB25: vectors 0 to 3 hold bits 0 to 3 as for b = 4, of two lane vectors each, those of one row;
//           bit i of byte j of vector 4 is bit 4 of code j of lane vector i. One period is 4 rows x 64
//           weights.
//
//   b = 3   Vector i donates bit i of each nibble to lane vectors 6 and 7, so that
//           (V0 & 0x11) | (V1 & 0x22) | (V2 & 0x44) is their nibble pair: no shift. A nibble of vector
//           i is used as a table index as it is, with a table expanded to 16 entries in which bit i
//           does not matter. CB3: one period is 2 rows x 64 weights:
//           V0 = row 0 group 0, V1 = row 0 group 1, V2 = row 1 group 0, the rest = row 1 group 1.
//
// The library: 256 tables; table t has p vectors of 2^b entries, `entry[t][weight of the pair][code]`.
#ifndef LUTRA_FORMATS_CB_H
#define LUTRA_FORMATS_CB_H

#include "cb_types.h"

#include <stddef.h>
#include <stdint.h>

#define LUTRA_LAYOUT_VERSION 1 // key lutra.layout.version of a file

enum {
    LUTRA_GROUP = 32,  // weights per selector
    LUTRA_ROWS = 8,    // rows per strip
    LUTRA_CHUNK = 64,  // weights per row and chunk
    LUTRA_LANE = 16,   // codes per lane vector
    LUTRA_TABLES = 256 // tables per library
};

// Parameters of one member of the family; every size follows from these four numbers.
struct lutra_cb_format {
    const char *name; // "CB4"
    int32_t type;     // ggml type id, -1: reference only
    int32_t bits;     // b: bits per code, 1 to 6
    int32_t pair;     // p: weights per code, 1 or 2
    int32_t sb;       // weights per super-block, 256 or 64
    int32_t bits2;    // b and p of the second layer; 0: there is none
    int32_t pair2;
};

// Bytes of the codes of one chunk: 64 weights x 8 rows.
static inline size_t lutra_cb_chunk_codes(const struct lutra_cb_format *f) {
    return (size_t)(LUTRA_CHUNK * LUTRA_ROWS / 8) * f->bits / f->pair;
}

// Bytes of one chunk: 16 selectors and the codes.
static inline size_t lutra_cb_chunk_bytes(const struct lutra_cb_format *f) {
    return 2 * LUTRA_ROWS + lutra_cb_chunk_codes(f);
}

// Bytes of one strip-super-block.
static inline size_t lutra_cb_block_bytes(const struct lutra_cb_format *f) {
    return 2 * LUTRA_ROWS + lutra_cb_chunk_bytes(f) * (f->sb / LUTRA_CHUNK);
}

// Bytes of one row of k weights in the first layer, an eighth of its strip.
static inline size_t lutra_cb_row_bytes(const struct lutra_cb_format *f, int64_t k) {
    return lutra_cb_block_bytes(f) / LUTRA_ROWS * (size_t)(k / f->sb);
}

// Bytes of the second layer's codes of one chunk, and of one row of k weights; 0 without such a layer.
static inline size_t lutra_cb_second_chunk(const struct lutra_cb_format *f) {
    return f->bits2 ? (size_t)(LUTRA_CHUNK * LUTRA_ROWS / 8) * f->bits2 / f->pair2 : 0;
}
static inline size_t lutra_cb_second_row_bytes(const struct lutra_cb_format *f, int64_t k) {
    return lutra_cb_second_chunk(f) / LUTRA_ROWS * (size_t)(k / LUTRA_CHUNK);
}

// Bytes of one table of a layer's library, of the first library, and of all.
static inline size_t lutra_cb_table_bytes(const struct lutra_cb_format *f) {
    return (size_t)f->pair << f->bits;
}
static inline size_t lutra_cb_second_table(const struct lutra_cb_format *f) {
    return (size_t)f->pair2 << f->bits2;
}
static inline size_t lutra_cb_first_library(const struct lutra_cb_format *f) {
    return LUTRA_TABLES * lutra_cb_table_bytes(f);
}
static inline size_t lutra_cb_library_bytes(const struct lutra_cb_format *f) {
    return LUTRA_TABLES * (lutra_cb_table_bytes(f) + lutra_cb_second_table(f));
}

#endif
