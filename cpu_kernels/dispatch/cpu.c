// SPDX-License-Identifier: MIT
// Run-time CPU detection; compiled for the baseline of the architecture.
#include "cpu.h"

#include <stdatomic.h>

#if defined(__x86_64__)

#include <cpuid.h>

// The VEX encodings of VNNI: cpuid leaf 7.1, eax bit 4 (compilers learnt the name late). They use
// registers that AVX2 has checked already. Under LUTRA_VNNI_EVEX the kernels have the encodings of
// AVX-512 instead.
static bool has_avx_vnni(void) {
#ifdef LUTRA_VNNI_EVEX
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4);
#endif
}

// __builtin_cpu_supports asks cpuid and, for the wide registers, whether the system saves them.
static bool detect(enum lutra_set set) {
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    switch (set) {
    case LUTRA_SET_REF:
        return true;
    case LUTRA_SET_AVX2:
        return avx2;
    case LUTRA_SET_AVX2_VNNI:
        return avx2 && has_avx_vnni();
    case LUTRA_SET_AVX512:
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("gfni");
    default:
        return false;
    }
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>
#include <sys/prctl.h>

// Bits of the kernel's interface (asm/hwcap.h), spelled out because old headers lack the newer ones.
#define HWCAP_BIT_ASIMDDP (1ul << 20)
#define HWCAP_BIT_SVE (1ul << 22)
#define HWCAP2_BIT_SVEI8MM (1ul << 9)
#define HWCAP2_BIT_I8MM (1ul << 13)

// Bytes of an SVE register of this thread, 0 when the system does not say. prctl(PR_SVE_GET_VL).
static int sve_bytes(void) {
    const int length = prctl(51);
    return length < 0 ? 0 : length & 0xffff;
}

static bool detect(enum lutra_set set) {
    const unsigned long hwcap = getauxval(AT_HWCAP);
    const unsigned long hwcap2 = getauxval(AT_HWCAP2);
    switch (set) {
    case LUTRA_SET_REF:
    case LUTRA_SET_NEON: // part of every 64-bit Arm CPU
        return true;
    case LUTRA_SET_NEON_DOTPROD:
        return hwcap & HWCAP_BIT_ASIMDDP;
    case LUTRA_SET_NEON_I8MM:
        return (hwcap & HWCAP_BIT_ASIMDDP) && (hwcap2 & HWCAP2_BIT_I8MM);
    case LUTRA_SET_SVE256: // its kernels are written for exactly this vector length
        return detect(LUTRA_SET_NEON_I8MM) && (hwcap & HWCAP_BIT_SVE) && (hwcap2 & HWCAP2_BIT_SVEI8MM) &&
               sve_bytes() == 32;
    default:
        return false;
    }
}

#elif defined(__aarch64__) && defined(__APPLE__)

#include <sys/sysctl.h>

static bool has(const char *feature) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(feature, &value, &size, NULL, 0) == 0 && value;
}

static bool detect(enum lutra_set set) {
    switch (set) {
    case LUTRA_SET_REF:
    case LUTRA_SET_NEON:
        return true;
    case LUTRA_SET_NEON_DOTPROD:
        return has("hw.optional.arm.FEAT_DotProd");
    case LUTRA_SET_NEON_I8MM:
        return has("hw.optional.arm.FEAT_DotProd") && has("hw.optional.arm.FEAT_I8MM");
    default: // no SVE
        return false;
    }
}

#else

static bool detect(enum lutra_set set) {
    return set == LUTRA_SET_REF;
}

#endif

// cpuid traps in virtual machines: detection runs once.
bool lutra_cpu_has(enum lutra_set set) {
    static _Atomic unsigned known; // bit s: set s; 0 before the first call, because ref is always there
    unsigned sets = atomic_load_explicit(&known, memory_order_relaxed);
    if (!sets) {
        for (int s = 0; s < LUTRA_SET_COUNT; s++) {
            sets |= (unsigned)detect((enum lutra_set)s) << s;
        }
        atomic_store_explicit(&known, sets, memory_order_relaxed);
    }
    return sets >> set & 1;
}
