// SPDX-License-Identifier: MIT
// The last line for an exception that nobody catches. It is part of libggml-base and of libllama: where each
// library has a C++ runtime of its own (LUTRA_PORTABLE), a handler belongs to one of them.
#include "lutra_ggml.h"

#include <exception>
#include <new>

namespace {

[[noreturn]] void on_terminate() {
    if (std::current_exception()) {
        try {
            throw;
        } catch (const std::bad_alloc &) {
            lutra_crash("out of memory");
        } catch (const std::exception &error) {
            lutra_crash(error.what());
        } catch (...) {
        }
    }
    lutra_crash("native code gave up");
}

struct Registration {
    Registration() {
        lutra_on_crash_runtime([] { std::set_terminate(on_terminate); });
    }
} registration;

} // namespace
