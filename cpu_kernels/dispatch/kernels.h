// SPDX-License-Identifier: MIT
// Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
// Every kernel of Lutra, one row each: ROW(op, SET, type, function). A row declares the function
// and, where its set is compiled in, registers it; <set>/<op>.c defines it.
#ifndef LUTRA_DISPATCH_KERNELS_H
#define LUTRA_DISPATCH_KERNELS_H

#include "../include/lutra_kernels.h"

// clang-format off
#define LUTRA_KERNELS_REF(ROW) \
    ROW(quantize,   REF, 256,                lutra_quantize_q8_256_1x1_ref) \
    ROW(quantize,   REF, 64,                 lutra_quantize_q8_64_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB2,     lutra_dequantize_cb2_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB3,     lutra_dequantize_cb3_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB4,     lutra_dequantize_cb4_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB5,     lutra_dequantize_cb5_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB6,     lutra_dequantize_cb6_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB25,    lutra_dequantize_cb25_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB2_64,  lutra_dequantize_cb2_64_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB3_64,  lutra_dequantize_cb3_64_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB4_64,  lutra_dequantize_cb4_64_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB5_64,  lutra_dequantize_cb5_64_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB6_64,  lutra_dequantize_cb6_64_1x1_ref) \
    ROW(dequantize, REF, LUTRA_TYPE_CB25_64, lutra_dequantize_cb25_64_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB2,     lutra_gemv_cb2_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB3,     lutra_gemv_cb3_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB4,     lutra_gemv_cb4_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB5,     lutra_gemv_cb5_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB6,     lutra_gemv_cb6_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB25,    lutra_gemv_cb25_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB2_64,  lutra_gemv_cb2_64_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB3_64,  lutra_gemv_cb3_64_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB4_64,  lutra_gemv_cb4_64_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB5_64,  lutra_gemv_cb5_64_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB6_64,  lutra_gemv_cb6_64_1x1_ref) \
    ROW(gemv,       REF, LUTRA_TYPE_CB25_64, lutra_gemv_cb25_64_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB2,     lutra_batch_cb2_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB3,     lutra_batch_cb3_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB4,     lutra_batch_cb4_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB5,     lutra_batch_cb5_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB6,     lutra_batch_cb6_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB25,    lutra_batch_cb25_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_1x1_ref) \
    ROW(batch,      REF, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB2,     lutra_gemm_cb2_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB3,     lutra_gemm_cb3_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB4,     lutra_gemm_cb4_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB5,     lutra_gemm_cb5_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB6,     lutra_gemm_cb6_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB25,    lutra_gemm_cb25_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_1x1_ref) \
    ROW(gemm,       REF, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_1x1_ref)

#define LUTRA_KERNELS_NEON(ROW) \
    ROW(quantize,   NEON, 256,                lutra_quantize_q8_256_1x1_neon) \
    ROW(quantize,   NEON, 64,                 lutra_quantize_q8_64_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB2,     lutra_dequantize_cb2_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB3,     lutra_dequantize_cb3_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB4,     lutra_dequantize_cb4_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB5,     lutra_dequantize_cb5_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB6,     lutra_dequantize_cb6_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB25,    lutra_dequantize_cb25_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB2_64,  lutra_dequantize_cb2_64_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB3_64,  lutra_dequantize_cb3_64_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB4_64,  lutra_dequantize_cb4_64_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB5_64,  lutra_dequantize_cb5_64_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB6_64,  lutra_dequantize_cb6_64_1x1_neon) \
    ROW(dequantize, NEON, LUTRA_TYPE_CB25_64, lutra_dequantize_cb25_64_1x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB2,     lutra_gemv_cb2_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB3,     lutra_gemv_cb3_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB4,     lutra_gemv_cb4_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB5,     lutra_gemv_cb5_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB6,     lutra_gemv_cb6_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB25,    lutra_gemv_cb25_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB2_64,  lutra_gemv_cb2_64_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB3_64,  lutra_gemv_cb3_64_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB4_64,  lutra_gemv_cb4_64_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB5_64,  lutra_gemv_cb5_64_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB6_64,  lutra_gemv_cb6_64_8x1_neon) \
    ROW(gemv,       NEON, LUTRA_TYPE_CB25_64, lutra_gemv_cb25_64_8x1_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB2,     lutra_batch_cb2_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB3,     lutra_batch_cb3_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB4,     lutra_batch_cb4_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB5,     lutra_batch_cb5_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB6,     lutra_batch_cb6_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB25,    lutra_batch_cb25_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_2x8_neon) \
    ROW(batch,      NEON, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_2x8_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB2,     lutra_gemm_cb2_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB3,     lutra_gemm_cb3_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB4,     lutra_gemm_cb4_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB5,     lutra_gemm_cb5_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB6,     lutra_gemm_cb6_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB25,    lutra_gemm_cb25_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_8x1_neon) \
    ROW(gemm,       NEON, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_8x1_neon)

#define LUTRA_KERNELS_NEON_DOTPROD(ROW) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB2,     lutra_gemv_cb2_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB3,     lutra_gemv_cb3_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB4,     lutra_gemv_cb4_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB5,     lutra_gemv_cb5_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB6,     lutra_gemv_cb6_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB25,    lutra_gemv_cb25_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB2_64,  lutra_gemv_cb2_64_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB3_64,  lutra_gemv_cb3_64_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB4_64,  lutra_gemv_cb4_64_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB5_64,  lutra_gemv_cb5_64_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB6_64,  lutra_gemv_cb6_64_8x1_neon_dotprod) \
    ROW(gemv,       NEON_DOTPROD, LUTRA_TYPE_CB25_64, lutra_gemv_cb25_64_8x1_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB2,     lutra_batch_cb2_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB3,     lutra_batch_cb3_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB4,     lutra_batch_cb4_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB5,     lutra_batch_cb5_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB6,     lutra_batch_cb6_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB25,    lutra_batch_cb25_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_2x8_neon_dotprod) \
    ROW(batch,      NEON_DOTPROD, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_2x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB2,     lutra_gemm_cb2_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB3,     lutra_gemm_cb3_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB4,     lutra_gemm_cb4_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB5,     lutra_gemm_cb5_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB6,     lutra_gemm_cb6_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB25,    lutra_gemm_cb25_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_8x8_neon_dotprod) \
    ROW(gemm,       NEON_DOTPROD, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_8x8_neon_dotprod)

#define LUTRA_KERNELS_NEON_I8MM(ROW) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB2,     lutra_batch_cb2_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB3,     lutra_batch_cb3_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB4,     lutra_batch_cb4_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB5,     lutra_batch_cb5_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB6,     lutra_batch_cb6_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB25,    lutra_batch_cb25_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_4x8_neon_i8mm) \
    ROW(batch,      NEON_I8MM, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_4x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB2,     lutra_gemm_cb2_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB3,     lutra_gemm_cb3_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB4,     lutra_gemm_cb4_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB5,     lutra_gemm_cb5_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB6,     lutra_gemm_cb6_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB25,    lutra_gemm_cb25_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_8x8_neon_i8mm) \
    ROW(gemm,       NEON_I8MM, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_8x8_neon_i8mm)

#define LUTRA_KERNELS_SVE256(ROW) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB2,     lutra_batch_cb2_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB3,     lutra_batch_cb3_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB4,     lutra_batch_cb4_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB5,     lutra_batch_cb5_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB6,     lutra_batch_cb6_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB25,    lutra_batch_cb25_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_8x8_sve256) \
    ROW(batch,      SVE256, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_8x8_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB2,     lutra_gemm_cb2_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB3,     lutra_gemm_cb3_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB4,     lutra_gemm_cb4_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB5,     lutra_gemm_cb5_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB6,     lutra_gemm_cb6_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB25,    lutra_gemm_cb25_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_8x24_sve256) \
    ROW(gemm,       SVE256, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_8x24_sve256)

#define LUTRA_KERNELS_AVX2(ROW) \
    ROW(quantize,   AVX2, 256,                lutra_quantize_q8_256_1x1_avx2) \
    ROW(quantize,   AVX2, 64,                 lutra_quantize_q8_64_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB2,     lutra_dequantize_cb2_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB3,     lutra_dequantize_cb3_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB4,     lutra_dequantize_cb4_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB5,     lutra_dequantize_cb5_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB6,     lutra_dequantize_cb6_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB25,    lutra_dequantize_cb25_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB2_64,  lutra_dequantize_cb2_64_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB3_64,  lutra_dequantize_cb3_64_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB4_64,  lutra_dequantize_cb4_64_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB5_64,  lutra_dequantize_cb5_64_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB6_64,  lutra_dequantize_cb6_64_1x1_avx2) \
    ROW(dequantize, AVX2, LUTRA_TYPE_CB25_64, lutra_dequantize_cb25_64_1x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB2,     lutra_gemv_cb2_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB3,     lutra_gemv_cb3_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB4,     lutra_gemv_cb4_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB5,     lutra_gemv_cb5_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB6,     lutra_gemv_cb6_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB25,    lutra_gemv_cb25_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB2_64,  lutra_gemv_cb2_64_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB3_64,  lutra_gemv_cb3_64_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB4_64,  lutra_gemv_cb4_64_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB5_64,  lutra_gemv_cb5_64_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB6_64,  lutra_gemv_cb6_64_4x1_avx2) \
    ROW(gemv,       AVX2, LUTRA_TYPE_CB25_64, lutra_gemv_cb25_64_4x1_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB2,     lutra_batch_cb2_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB3,     lutra_batch_cb3_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB4,     lutra_batch_cb4_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB5,     lutra_batch_cb5_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB6,     lutra_batch_cb6_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB25,    lutra_batch_cb25_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_2x4_avx2) \
    ROW(batch,      AVX2, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_2x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB2,     lutra_gemm_cb2_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB3,     lutra_gemm_cb3_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB4,     lutra_gemm_cb4_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB5,     lutra_gemm_cb5_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB6,     lutra_gemm_cb6_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB25,    lutra_gemm_cb25_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_16x4_avx2) \
    ROW(gemm,       AVX2, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_16x4_avx2)

#define LUTRA_KERNELS_AVX2_VNNI(ROW) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB2,     lutra_gemv_cb2_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB3,     lutra_gemv_cb3_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB4,     lutra_gemv_cb4_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB5,     lutra_gemv_cb5_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB6,     lutra_gemv_cb6_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB25,    lutra_gemv_cb25_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB2_64,  lutra_gemv_cb2_64_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB3_64,  lutra_gemv_cb3_64_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB4_64,  lutra_gemv_cb4_64_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB5_64,  lutra_gemv_cb5_64_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB6_64,  lutra_gemv_cb6_64_4x1_avx2_vnni) \
    ROW(gemv,       AVX2_VNNI, LUTRA_TYPE_CB25_64, lutra_gemv_cb25_64_4x1_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB2,     lutra_batch_cb2_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB3,     lutra_batch_cb3_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB4,     lutra_batch_cb4_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB5,     lutra_batch_cb5_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB6,     lutra_batch_cb6_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB25,    lutra_batch_cb25_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_2x4_avx2_vnni) \
    ROW(batch,      AVX2_VNNI, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_2x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB2,     lutra_gemm_cb2_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB3,     lutra_gemm_cb3_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB4,     lutra_gemm_cb4_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB5,     lutra_gemm_cb5_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB6,     lutra_gemm_cb6_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB25,    lutra_gemm_cb25_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_16x4_avx2_vnni) \
    ROW(gemm,       AVX2_VNNI, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_16x4_avx2_vnni)

#define LUTRA_KERNELS_AVX512(ROW) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB2,     lutra_gemv_cb2_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB3,     lutra_gemv_cb3_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB4,     lutra_gemv_cb4_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB5,     lutra_gemv_cb5_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB6,     lutra_gemv_cb6_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB25,    lutra_gemv_cb25_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB2_64,  lutra_gemv_cb2_64_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB3_64,  lutra_gemv_cb3_64_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB4_64,  lutra_gemv_cb4_64_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB5_64,  lutra_gemv_cb5_64_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB6_64,  lutra_gemv_cb6_64_8x1_avx512) \
    ROW(gemv,       AVX512, LUTRA_TYPE_CB25_64, lutra_gemv_cb25_64_8x1_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB2,     lutra_batch_cb2_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB3,     lutra_batch_cb3_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB4,     lutra_batch_cb4_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB5,     lutra_batch_cb5_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB6,     lutra_batch_cb6_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB25,    lutra_batch_cb25_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB2_64,  lutra_batch_cb2_64_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB3_64,  lutra_batch_cb3_64_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB4_64,  lutra_batch_cb4_64_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB5_64,  lutra_batch_cb5_64_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB6_64,  lutra_batch_cb6_64_8x8_avx512) \
    ROW(batch,      AVX512, LUTRA_TYPE_CB25_64, lutra_batch_cb25_64_8x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB2,     lutra_gemm_cb2_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB3,     lutra_gemm_cb3_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB4,     lutra_gemm_cb4_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB5,     lutra_gemm_cb5_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB6,     lutra_gemm_cb6_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB25,    lutra_gemm_cb25_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB2_64,  lutra_gemm_cb2_64_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB3_64,  lutra_gemm_cb3_64_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB4_64,  lutra_gemm_cb4_64_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB5_64,  lutra_gemm_cb5_64_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB6_64,  lutra_gemm_cb6_64_32x8_avx512) \
    ROW(gemm,       AVX512, LUTRA_TYPE_CB25_64, lutra_gemm_cb25_64_32x8_avx512)

// Those of this build.
#if defined(__aarch64__)
#define LUTRA_KERNELS(ROW) \
    LUTRA_KERNELS_REF(ROW) \
    LUTRA_KERNELS_NEON(ROW) \
    LUTRA_KERNELS_NEON_DOTPROD(ROW) \
    LUTRA_KERNELS_NEON_I8MM(ROW) \
    LUTRA_KERNELS_SVE256(ROW)
#elif defined(__x86_64__)
#define LUTRA_KERNELS(ROW) \
    LUTRA_KERNELS_REF(ROW) \
    LUTRA_KERNELS_AVX2(ROW) \
    LUTRA_KERNELS_AVX2_VNNI(ROW) \
    LUTRA_KERNELS_AVX512(ROW)
#else
#define LUTRA_KERNELS(ROW) \
    LUTRA_KERNELS_REF(ROW)
#endif
// clang-format on

#define LUTRA_DECLARE(op, set, type, function) lutra_##op##_fn function;
LUTRA_KERNELS_REF(LUTRA_DECLARE)
LUTRA_KERNELS_NEON(LUTRA_DECLARE)
LUTRA_KERNELS_NEON_DOTPROD(LUTRA_DECLARE)
LUTRA_KERNELS_NEON_I8MM(LUTRA_DECLARE)
LUTRA_KERNELS_SVE256(LUTRA_DECLARE)
LUTRA_KERNELS_AVX2(LUTRA_DECLARE)
LUTRA_KERNELS_AVX2_VNNI(LUTRA_DECLARE)
LUTRA_KERNELS_AVX512(LUTRA_DECLARE)
#undef LUTRA_DECLARE

#endif
