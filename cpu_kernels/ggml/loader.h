// SPDX-License-Identifier: MIT
// What llama.cpp's model loader asks of Lutra.
#pragma once

#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <map>

// A file with CB tensors must have a layout version that we know, and LUTRA_KERNELS must name kernels
// that this CPU can run. Logs one line per CB type: its kernels and its number of tensors.
// "lutra.planes", if the file has it, must be a list of names, and LUTRA_PLANES 1 or 2, if it is set.
// Throws std::runtime_error, which the loader reports.
void lutra_check_file(const gguf_context *metadata, const std::map<ggml_type, uint32_t> &n_type);

// Gives a CB tensor the planes of activations that LUTRA_PLANES, or else the file, says.
void lutra_choose_planes(const gguf_context *metadata, ggml_tensor *tensor);

// The library of a CB tensor that has been loaded into memory of this machine holds no entry of -128.
// Throws std::runtime_error, which the loader reports.
void lutra_check_library(const ggml_tensor *tensor);
