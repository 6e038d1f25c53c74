// SPDX-License-Identifier: MIT
// Where libggml is, for the search for CPU backends.
#include "lutra_ggml.h"

#include <dlfcn.h>
#include <string.h>

const char *lutra_library_dir(void) {
    static char path[4096];
    Dl_info info;
    if (!dladdr(path, &info) || !strchr(info.dli_fname, '/') || strlen(info.dli_fname) >= sizeof(path)) {
        return ".";
    }
    strcpy(path, info.dli_fname);
    *strrchr(path, '/') = '\0';
    return path;
}
