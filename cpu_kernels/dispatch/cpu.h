// SPDX-License-Identifier: MIT
// What the CPU we run on can do, operating system included.
#ifndef LUTRA_DISPATCH_CPU_H
#define LUTRA_DISPATCH_CPU_H

#include "../include/lutra_kernels.h"

// True when every instruction of a kernel of this set may be executed here.
bool lutra_cpu_has(enum lutra_set set);

#endif
