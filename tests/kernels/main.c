// SPDX-License-Identifier: MIT
// lutra_kernel_tests [--expect SET] [--brief] [--seed N] [SUBSTRING]
//
// The reference against the format, the registry, then every kernel of this CPU against the reference.
// --expect SET: fail unless the best set that runs on this CPU is SET. --brief: kernels that were tested on
// another CPU, on one shape, for the instructions that this one may lack. --seed N: the inputs and shapes of
// another run, which printed N. SUBSTRING: only these kernels.
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// The highest set among the chosen kernels.
static enum lutra_set best_set(void) {
    enum lutra_set best = LUTRA_SET_REF;
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const struct lutra_kernel *row = lutra_kernel_at(i);
        const enum lutra_set set = lutra_kernel_chosen(row->op, row->type)->set;
        best = set > best ? set : best;
    }
    return best;
}

int main(int argc, char **argv) {
    const char *expect = NULL, *filter = "";
    bool brief = false;
    uint64_t seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--expect") == 0 && i + 1 < argc) {
            expect = argv[++i];
        } else if (strcmp(argv[i], "--brief") == 0) {
            brief = true;
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            seed = strtoull(argv[++i], NULL, 10);
        } else if (argv[i][0] != '-') {
            filter = argv[i];
        } else {
            fprintf(stderr, "usage: %s [--expect SET] [--brief] [--seed N] [SUBSTRING]\n", argv[0]);
            return 2;
        }
    }
    if (expect) {
        const char *best = lutra_set_name(best_set());
        check(strcmp(best, expect) == 0, "%s runs, %s expected", best, expect);
    }
    printf("seed %llu\n", (unsigned long long)seed);
    random_seed(seed);
    test_ref();
    test_dispatch();
    int tested = 0, skipped = 0;
    for (int i = 0; i < lutra_kernel_count(); i++) {
        const struct lutra_kernel *kernel = lutra_kernel_at(i);
        if (!strstr(kernel->name, filter)) {
            continue;
        }
        if (!lutra_set_supported(kernel->set)) {
            printf("skipped %s: this CPU lacks %s\n", kernel->name, lutra_set_name(kernel->set));
            skipped++;
            continue;
        }
        const int before = checks_failed;
        printf("%-40s", kernel->name); // the last line of a crash
        fflush(stdout);
        random_seed(seed); // the same inputs with and without SUBSTRING
        test_kernel(kernel, brief);
        printf(" %s\n", checks_failed == before ? "ok" : "FAILED");
        tested++;
    }
    check(tested > 0, "no kernel was tested");
    printf("%d kernels, %d skipped, %d checks failed\n", tested, skipped, checks_failed);
    return checks_failed ? 1 : 0;
}
