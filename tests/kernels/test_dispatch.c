// SPDX-License-Identifier: MIT
// The registry: complete, consistent, and obedient to LUTRA_KERNELS.
#include "harness.h"

#include <stdlib.h>
#include <string.h>

static bool compiled(enum lutra_set set) {
    for (int i = 0; i < lutra_kernel_count(); i++) {
        if (lutra_kernel_at(i)->set == set) {
            return true;
        }
    }
    return false;
}

static bool registered(enum lutra_op op, enum lutra_set set, int32_t type) {
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const struct lutra_kernel *kernel = lutra_kernel_at(i);
        if (kernel->op == op && kernel->set == set && kernel->type == type) {
            return true;
        }
    }
    return false;
}

static void test_rows(void) {
    static const char *const ops[LUTRA_OP_COUNT] = {"gemv", "batch", "gemm", "dequantize", "quantize"};
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const struct lutra_kernel *kernel = lutra_kernel_at(i);
        char prefix[64] = "lutra_";
        strcat(strcat(prefix, ops[kernel->op]), "_");
        const char *set = lutra_set_name(kernel->set);
        const size_t length = strlen(kernel->name), tail = strlen(set);
        check(strncmp(kernel->name, prefix, strlen(prefix)) == 0, "%s: not named after its job",
              kernel->name);
        check(length > tail + 1 && kernel->name[length - tail - 1] == '_' &&
                  strcmp(kernel->name + length - tail, set) == 0,
              "%s: not named after its set %s", kernel->name, set);
        check(kernel->op != LUTRA_OP_GEMM || registered(LUTRA_OP_BATCH, kernel->set, kernel->type),
              "%s: 2 to 8 columns would run on a lower set", kernel->name);
        check(reference_of(kernel) != NULL, "%s: no reference", kernel->name);
        check(lutra_kernel_chosen(kernel->op, kernel->type) != NULL, "%s: nothing chosen", kernel->name);
        for (int j = 0; j < i; j++) {
            check(strcmp(kernel->name, lutra_kernel_at(j)->name) != 0, "%s: twice", kernel->name);
        }
    }
    check(lutra_kernel_at(-1) == NULL && lutra_kernel_at(lutra_kernel_count()) == NULL, "row out of range");
    check(lutra_kernel_chosen(LUTRA_OP_GEMV, 12345) == NULL, "a kernel for an unknown type");
    check(lutra_cb_format_of_type(12345) == NULL && lutra_cb_format_of_name("CB9") == NULL, "unknown format");
    check(lutra_cb_format_of_name("CB3_64") == lutra_cb_format_of_type(LUTRA_TYPE_CB3_64), "format by name");
}

// Every job runs the best supported set that is not above `limit`.
static void expect_choice(int limit) {
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const struct lutra_kernel *row = lutra_kernel_at(i);
        const struct lutra_kernel *chosen = lutra_kernel_chosen(row->op, row->type);
        check(chosen && chosen->op == row->op && chosen->type == row->type, "%s: wrong job", row->name);
        check(chosen && (int)chosen->set <= limit && lutra_set_supported(chosen->set),
              "%s: %s runs, above set %d", row->name, chosen ? chosen->name : "nothing", limit);
        check(chosen && (chosen->set >= row->set || (int)row->set > limit || !lutra_set_supported(row->set)),
              "%s: passed over for %s", row->name, chosen ? chosen->name : "nothing");
    }
}

// LUTRA_KERNELS as if the process started with it; NULL: without.
static void start_with(const char *name) {
    if (name) {
        setenv("LUTRA_KERNELS", name, 1);
    } else {
        unsetenv("LUTRA_KERNELS");
    }
    lutra_kernels_reset();
}

void test_dispatch(void) {
    const char *before = getenv("LUTRA_KERNELS");
    char *saved = before ? strdup(before) : NULL;

    start_with(NULL);
    check(lutra_kernels_error() == NULL, "error without LUTRA_KERNELS");
    check(lutra_set_supported(LUTRA_SET_REF), "the reference is always supported");
    test_rows();
    expect_choice(LUTRA_SET_COUNT);
    setenv("LUTRA_KERNELS", "avx3", 1);
    check(lutra_kernels_error() == NULL, "LUTRA_KERNELS is read twice");
    expect_choice(LUTRA_SET_COUNT);
    start_with("");
    check(lutra_kernels_error() == NULL, "empty LUTRA_KERNELS is no force");
    expect_choice(LUTRA_SET_COUNT);

    for (int set = 0; set < LUTRA_SET_COUNT; set++) {
        const char *name = lutra_set_name((enum lutra_set)set);
        start_with(name);
        const char *error = lutra_kernels_error();
        if (compiled((enum lutra_set)set) && lutra_set_supported((enum lutra_set)set)) {
            check(error == NULL, "%s refused: %s", name, error ? error : "");
            expect_choice(set);
        } else {
            check(error && strstr(error, name) && strstr(error, "ref"), "%s accepted: %s", name,
                  error ? error : "no error");
        }
    }
    start_with("avx3");
    check(lutra_kernels_error() && strstr(lutra_kernels_error(), "avx3"), "an unknown set is accepted");
    expect_choice(LUTRA_SET_REF);

    start_with(saved);
    free(saved);
}
