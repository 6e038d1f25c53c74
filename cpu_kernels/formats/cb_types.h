// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
// The types of the CB family; cb.h explains them.
//
//     type    b  p  b2 p2  SB   bpw     strip-super-block   second   library
//     CB2     4  2  0  0  256  2.3125   592 B                 0 B   8 KiB
//     CB3     3  1  0  0  256  3.3125   848 B                 0 B   2 KiB
//     CB4     4  1  0  0  256  4.3125  1104 B                 0 B   4 KiB
//     CB5     4  1  1  1  256  5.3125  1104 B               256 B   4608 B
//     CB6     4  1  4  2  256  6.3125  1104 B               512 B   12 KiB
//     CB25    5  2  0  0  256  2.8125   720 B                 0 B   16 KiB
//     CB2_64  4  2  0  0   64  2.5      160 B                 0 B   8 KiB
//     CB3_64  3  1  0  0   64  3.5      224 B                 0 B   2 KiB
//     CB4_64  4  1  0  0   64  4.5      288 B                 0 B   4 KiB
//     CB5_64  4  1  1  1   64  5.5      288 B                64 B   4608 B
//     CB6_64  4  1  4  2   64  6.5      288 B               128 B   12 KiB
//     CB25_64 5  2  0  0   64  3        192 B                 0 B   16 KiB
//
// Which bits of the vectors belong to which lane vector, byte by byte:
//
//   b = 1   8 lane vectors in 1 vector       bit 7 6 5 4 3 2 1 0
//                                        V0      7 6 5 4 3 2 1 0
//
//   b = 2   4 lane vectors in 1 vector       bit 7 6 5 4 3 2 1 0
//                                        V0      3 3 2 2 1 1 0 0
//
//   b = 3   8 lane vectors in 3 vectors      bit 7 6 5 4 3 2 1 0
//                                        V0      1 1 1 7 0 0 0 6
//                                        V1      3 3 7 3 2 2 6 2
//                                        V2      5 7 5 5 4 6 4 4
//
//   b = 4   2 lane vectors in 1 vector       bit 7 6 5 4 3 2 1 0
//                                        V0      1 1 1 1 0 0 0 0
//
//   b = 5   8 lane vectors in 5 vectors      bit 7 6 5 4 3 2 1 0
//                                        V0      1 1 1 1 0 0 0 0
//                                        V1      3 3 3 3 2 2 2 2
//                                        V2      5 5 5 5 4 4 4 4
//                                        V3      7 7 7 7 6 6 6 6
//                                        V4      7 6 5 4 3 2 1 0
//
//   b = 6   4 lane vectors in 3 vectors      bit 7 6 5 4 3 2 1 0
//                                        V0      1 1 1 1 0 0 0 0
//                                        V1      3 3 3 3 2 2 2 2
//                                        V2      3 3 1 1 2 2 0 0
#ifndef LUTRA_FORMATS_CB_TYPES_H
#define LUTRA_FORMATS_CB_TYPES_H

#include <stdint.h>

// ggml type ids
enum lutra_type {
    LUTRA_TYPE_CB2 = 402,
    LUTRA_TYPE_CB3 = 403,
    LUTRA_TYPE_CB4 = 404,
    LUTRA_TYPE_CB5 = 405,
    LUTRA_TYPE_CB6 = 406,
    LUTRA_TYPE_CB25 = 407,
    LUTRA_TYPE_CB2_64 = 422,
    LUTRA_TYPE_CB3_64 = 423,
    LUTRA_TYPE_CB4_64 = 424,
    LUTRA_TYPE_CB5_64 = 425,
    LUTRA_TYPE_CB6_64 = 426,
    LUTRA_TYPE_CB25_64 = 427,
    LUTRA_TYPE_FIRST = LUTRA_TYPE_CB2,
};

// ROW(name, in lower case, b, p, SB, b and p of the second layer or 0)
// clang-format off
#define LUTRA_CB_TYPES(ROW) \
    ROW(CB2, cb2, 4, 2, 256, 0, 0) \
    ROW(CB3, cb3, 3, 1, 256, 0, 0) \
    ROW(CB4, cb4, 4, 1, 256, 0, 0) \
    ROW(CB5, cb5, 4, 1, 256, 1, 1) \
    ROW(CB6, cb6, 4, 1, 256, 4, 2) \
    ROW(CB25, cb25, 5, 2, 256, 0, 0) \
    ROW(CB2_64, cb2_64, 4, 2, 64, 0, 0) \
    ROW(CB3_64, cb3_64, 3, 1, 64, 0, 0) \
    ROW(CB4_64, cb4_64, 4, 1, 64, 0, 0) \
    ROW(CB5_64, cb5_64, 4, 1, 64, 1, 1) \
    ROW(CB6_64, cb6_64, 4, 1, 64, 4, 2) \
    ROW(CB25_64, cb25_64, 5, 2, 64, 0, 0)

struct lutra_cb2_chunk {
    uint8_t selector[8][2];
    uint8_t codes[8][16]; // [row][j]
};

struct lutra_cb3_chunk {
    uint8_t selector[8][2];
    uint8_t codes[4][3][16]; // [row pair][vector][j]
};

struct lutra_cb4_chunk {
    uint8_t selector[8][2];
    uint8_t codes[8][2][16]; // [row][group][j]
};

struct lutra_cb5_chunk {
    uint8_t selector[8][2];
    uint8_t codes[8][2][16]; // [row][group][j]
};
struct lutra_cb5_second { uint8_t codes[4][16]; }; // [row pair][j]

struct lutra_cb6_chunk {
    uint8_t selector[8][2];
    uint8_t codes[8][2][16]; // [row][group][j]
};
struct lutra_cb6_second { uint8_t codes[8][16]; }; // [row][j]

struct lutra_cb25_chunk {
    uint8_t selector[8][2];
    uint8_t codes[2][5][16]; // [4 rows][vector][j]
};

struct lutra_cb2 { uint16_t d[8]; struct lutra_cb2_chunk chunk[4]; };
struct lutra_cb3 { uint16_t d[8]; struct lutra_cb3_chunk chunk[4]; };
struct lutra_cb4 { uint16_t d[8]; struct lutra_cb4_chunk chunk[4]; };
struct lutra_cb5 { uint16_t d[8]; struct lutra_cb5_chunk chunk[4]; };
struct lutra_cb6 { uint16_t d[8]; struct lutra_cb6_chunk chunk[4]; };
struct lutra_cb25 { uint16_t d[8]; struct lutra_cb25_chunk chunk[4]; };
struct lutra_cb2_64 { uint16_t d[8]; struct lutra_cb2_chunk chunk[1]; };
struct lutra_cb3_64 { uint16_t d[8]; struct lutra_cb3_chunk chunk[1]; };
struct lutra_cb4_64 { uint16_t d[8]; struct lutra_cb4_chunk chunk[1]; };
struct lutra_cb5_64 { uint16_t d[8]; struct lutra_cb5_chunk chunk[1]; };
struct lutra_cb6_64 { uint16_t d[8]; struct lutra_cb6_chunk chunk[1]; };
struct lutra_cb25_64 { uint16_t d[8]; struct lutra_cb25_chunk chunk[1]; };
// clang-format on

#ifndef __cplusplus
_Static_assert(sizeof(struct lutra_cb2) == 592, "8 x 256 weights at 2.3125 bits");
_Static_assert(sizeof(struct lutra_cb3) == 848, "8 x 256 weights at 3.3125 bits");
_Static_assert(sizeof(struct lutra_cb4) == 1104, "8 x 256 weights at 4.3125 bits");
_Static_assert(sizeof(struct lutra_cb5) == 1104, "8 x 256 weights, the first layer of 5.3125 bits");
_Static_assert(sizeof(struct lutra_cb6) == 1104, "8 x 256 weights, the first layer of 6.3125 bits");
_Static_assert(sizeof(struct lutra_cb25) == 720, "8 x 256 weights at 2.8125 bits");
_Static_assert(sizeof(struct lutra_cb2_64) == 160, "8 x 64 weights at 2.5 bits");
_Static_assert(sizeof(struct lutra_cb3_64) == 224, "8 x 64 weights at 3.5 bits");
_Static_assert(sizeof(struct lutra_cb4_64) == 288, "8 x 64 weights at 4.5 bits");
_Static_assert(sizeof(struct lutra_cb5_64) == 288, "8 x 64 weights, the first layer of 5.5 bits");
_Static_assert(sizeof(struct lutra_cb6_64) == 288, "8 x 64 weights, the first layer of 6.5 bits");
_Static_assert(sizeof(struct lutra_cb25_64) == 192, "8 x 64 weights at 3 bits");
_Static_assert(sizeof(struct lutra_cb5_second) == 64, "8 x 64 weights, the second layer");
_Static_assert(sizeof(struct lutra_cb6_second) == 128, "8 x 64 weights, the second layer");
#endif

#endif
