// SPDX-License-Identifier: MIT
// The registry: the kernels of this build, and the choice among them.
#include "cpu.h"
#include "kernels.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Rows name their operation in lower case; these give the enumerator.
#define OP_quantize LUTRA_OP_QUANTIZE
#define OP_dequantize LUTRA_OP_DEQUANTIZE
#define OP_gemv LUTRA_OP_GEMV
#define OP_batch LUTRA_OP_BATCH
#define OP_gemm LUTRA_OP_GEMM
#define REGISTER(op_, set_, type_, function)                                                                 \
    {.name = #function, .op = OP_##op_, .set = LUTRA_SET_##set_, .type = type_, .fn.op_ = function},

static const struct lutra_kernel kernels[] = {
    // clang-format off
    LUTRA_KERNELS(REGISTER)
    // clang-format on
};
enum { KERNELS = sizeof(kernels) / sizeof(kernels[0]) };

static const char *const set_names[LUTRA_SET_COUNT] = {LUTRA_SET_NAMES};

int lutra_kernel_count(void) {
    return KERNELS;
}

const struct lutra_kernel *lutra_kernel_at(int i) {
    return i >= 0 && i < KERNELS ? &kernels[i] : NULL;
}

const char *lutra_set_name(enum lutra_set set) {
    return (unsigned)set < LUTRA_SET_COUNT ? set_names[set] : NULL;
}

bool lutra_set_supported(enum lutra_set set) {
    return lutra_cpu_has(set);
}

static bool compiled(enum lutra_set set) {
    for (int i = 0; i < KERNELS; i++) {
        if (kernels[i].set == set) {
            return true;
        }
    }
    return false;
}

// The set of this name, LUTRA_SET_COUNT when there is none.
static enum lutra_set set_of_name(const char *name) {
    int set = 0;
    while (set < LUTRA_SET_COUNT && strcmp(set_names[set], name) != 0) {
        set++;
    }
    return (enum lutra_set)set;
}

// ---- the choice, made once: it never changes while kernels run -------------------------------

struct choice {
    const struct lutra_kernel *best[LUTRA_OP_COUNT][KERNELS + 1]; // one for each type, then NULL
    char error[256];                                              // why LUTRA_KERNELS cannot be obeyed, or ""
};

// The set that LUTRA_KERNELS names; ref, and an error, when it cannot be obeyed.
static enum lutra_set limit_of(const char *name, char error[256]) {
    const enum lutra_set set = set_of_name(name);
    const char *why = set == LUTRA_SET_COUNT ? "there is no such set"
                      : !compiled(set)       ? "not compiled into this build"
                      : !lutra_cpu_has(set)  ? "not supported by this CPU"
                                             : NULL;
    if (!why) {
        return set;
    }
    char usable[128] = "";
    for (int s = 0; s < LUTRA_SET_COUNT; s++) {
        if (compiled((enum lutra_set)s) && lutra_cpu_has((enum lutra_set)s)) {
            strcat(strcat(usable, " "), set_names[s]);
        }
    }
    snprintf(error, 256, "LUTRA_KERNELS=%.40s: %s; usable here:%s", name, why, usable);
    return LUTRA_SET_REF;
}

// Where a job's kernel of this type is or will be.
static const struct lutra_kernel **slot_of(struct choice *choice, enum lutra_op op, int32_t type) {
    const struct lutra_kernel **slot = choice->best[op];
    while (*slot && (*slot)->type != type) {
        slot++;
    }
    return slot;
}

static struct choice *make_choice(void) {
    struct choice *choice = calloc(1, sizeof(*choice));
    if (!choice) {
        fprintf(stderr, "lutra: out of memory for the table of kernels\n");
        abort();
    }
    const char *name = getenv("LUTRA_KERNELS");
    const enum lutra_set limit = name && *name ? limit_of(name, choice->error) : LUTRA_SET_COUNT;
    for (int i = 0; i < KERNELS; i++) {
        const struct lutra_kernel *kernel = &kernels[i];
        const struct lutra_kernel **slot = slot_of(choice, kernel->op, kernel->type);
        if (kernel->set <= limit && lutra_cpu_has(kernel->set) && (!*slot || kernel->set > (*slot)->set)) {
            *slot = kernel;
        }
    }
    return choice;
}

static _Atomic(struct choice *) made;

// Threads that come at the same time make the same choice; the first one's stays.
static struct choice *the_choice(void) {
    struct choice *choice = atomic_load_explicit(&made, memory_order_acquire);
    if (!choice) {
        struct choice *mine = make_choice();
        if (atomic_compare_exchange_strong(&made, &choice, mine)) {
            choice = mine;
        } else {
            free(mine);
        }
    }
    return choice;
}

void lutra_kernels_reset(void) {
    free(atomic_exchange(&made, NULL));
}

const char *lutra_kernels_error(void) {
    const char *error = the_choice()->error;
    return *error ? error : NULL;
}

const struct lutra_kernel *lutra_kernel_chosen(enum lutra_op op, int32_t type) {
    return *slot_of(the_choice(), op, type);
}
