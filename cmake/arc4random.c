// SPDX-License-Identifier: MIT
// glibc has this function from 2.36 on, and the libstdc++.a of a compiler that was built there calls it.
// Ours, in every library, lets a package run with glibc 2.34. Weak, because a link may name this object
// twice.
#include <stdint.h>
#include <sys/random.h>

uint32_t arc4random(void);

__attribute__((weak, visibility("hidden"))) uint32_t arc4random(void) {
    uint32_t value = 0;
    while (getrandom(&value, sizeof(value), 0) != (ssize_t)sizeof(value)) {
    }
    return value;
}
