// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
#include "bits.h"

// clang-format off
const struct lutra_bits lutra_bits[7] = {
    [1] = {8, 1, {"76543210"}},
    [2] = {4, 1, {"33221100"}},
    [3] = {8, 3, {"11170006",
                  "33732262",
                  "57554644"}},
    [4] = {2, 1, {"11110000"}},
    [5] = {8, 5, {"11110000",
                  "33332222",
                  "55554444",
                  "77776666",
                  "76543210"}},
    [6] = {4, 3, {"11110000",
                  "33332222",
                  "33112200"}},
};
// clang-format on
