// lutra_kernel_tests [--expect SET] [SUBSTRING]
//
// The reference against the format, the registry, then every kernel of this CPU against the reference.
// --expect SET: fail unless the chosen gemv kernels are of this set. SUBSTRING: only these kernels.
#include "harness.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    const char *expect = NULL, *filter = "";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--expect") == 0 && i + 1 < argc) {
            expect = argv[++i];
        } else if (argv[i][0] != '-') {
            filter = argv[i];
        } else {
            fprintf(stderr, "usage: %s [--expect SET] [SUBSTRING]\n", argv[0]);
            return 2;
        }
    }
    if (expect) {
        const struct lutra_kernel *chosen = lutra_kernel_chosen(LUTRA_OP_GEMV, LUTRA_TYPE_CB4);
        check(strcmp(lutra_set_name(chosen->set), expect) == 0, "%s runs, %s expected", chosen->name, expect);
    }
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
        test_kernel(kernel);
        printf("%s %s\n", checks_failed == before ? "ok     " : "FAILED ", kernel->name);
        tested++;
    }
    check(tested > 0, "no kernel was tested");
    printf("%d kernels, %d skipped, %d checks failed\n", tested, skipped, checks_failed);
    return checks_failed ? 1 : 0;
}
