// SPDX-License-Identifier: MIT
// How entries meet activations: by the best instruction of the set that is being compiled, avx2/ or
// avx2_vnni/.
#ifndef LUTRA_AVX2_PRODUCT_H
#define LUTRA_AVX2_PRODUCT_H

#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#include "../avx2_vnni/product_avx2_vnni.h"
#else
#include "product_avx2.h"
#endif

#endif
