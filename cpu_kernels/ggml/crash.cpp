// SPDX-License-Identifier: MIT
// The last line of a command: what ggml's and llama.cpp's assertions, exceptions that nobody catches and
// fatal signals say, instead of a backtrace and a core. Whatever thread it happens in, the process ends.
#include "ggml.h"
#include "lutra_ggml.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <initializer_list>

namespace {

std::atomic<const char *> text_before{""};
std::atomic<const char *> text_after{""};
std::atomic<const char *> doomed[LUTRA_CRASH_FILES];
pid_t owner = 0;

// Everything below may run in a signal handler: no memory is allocated, no lock is taken.

class Line {
  public:
    void add(const char *words) {
        for (; *words && size < sizeof(text) - 1; words++) {
            text[size++] = *words == '\n' ? ' ' : *words;
        }
    }
    void print() {
        text[size++] = '\n';
        // A progress bar or half an answer may be on the terminal's last line.
        if (isatty(STDERR_FILENO) && write(STDERR_FILENO, "\n", 1) < 0) {
            return;
        }
        for (size_t done = 0; done < size;) {
            const ssize_t n = write(STDERR_FILENO, text + done, size - done);
            if (n <= 0) {
                return;
            }
            done += (size_t)n;
        }
    }

  private:
    char text[4096];
    size_t size = 0;
};

[[noreturn]] void end(const char *what) {
    static std::atomic_flag ending = ATOMIC_FLAG_INIT;
    static pthread_t ender;
    if (ending.test_and_set()) {
        while (!pthread_equal(ender, pthread_self())) {
            pause(); // another thread is about to end the process
        }
        _exit(1); // this very function crashed
    }
    ender = pthread_self();
    Line line;
    line.add("lutra: error: ");
    line.add(text_before);
    line.add(what);
    line.add(text_after);
    line.print();
    if (getpid() == owner) { // not a child's business
        for (int i = LUTRA_CRASH_FILES - 1; i >= 0; i--) {
            const char *path = doomed[i];
            if (path && unlink(path) != 0) {
                rmdir(path);
            }
        }
    }
    _exit(1);
}

// "directories/file:line: message", of which the directories are the build's.
[[noreturn]] void on_abort(const char *message) {
    const char *start = message;
    for (const char *at = message; *at && *at != ':'; at++) {
        if (*at == '/') {
            start = at + 1;
        }
    }
    end(start);
}

[[noreturn]] void on_signal(int number) {
    switch (number) {
    case SIGABRT:
        end("native code gave up (SIGABRT)");
    case SIGBUS:
        end("native code crashed (SIGBUS: a file became shorter, or its disk fails)");
    case SIGFPE:
        end("native code crashed (SIGFPE)");
    case SIGILL:
        end("native code crashed (SIGILL: an instruction that this CPU does not have)");
    default:
        end("native code crashed (SIGSEGV)");
    }
}

void (*runtimes[4])(void); // each installs the handler of one C++ runtime: terminate.cpp
int n_runtimes = 0;

void install() {
    owner = getpid();
    ggml_set_abort_callback(on_abort);
    for (int i = 0; i < n_runtimes; i++) {
        runtimes[i]();
    }
    // A stack for the handler, in case this thread's own is exhausted.
    static char stack[1 << 16];
    stack_t before;
    if (sigaltstack(nullptr, &before) == 0 && (before.ss_flags & SS_DISABLE)) {
        stack_t own = {};
        own.ss_sp = stack;
        own.ss_size = sizeof(stack);
        sigaltstack(&own, nullptr);
    }
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (int number : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV}) {
        sigaction(number, &action, nullptr);
    }
}

} // namespace

void lutra_on_crash(const char *before, const char *after) {
    text_before = before;
    text_after = after;
    if (owner == 0) {
        install();
    }
}

void lutra_on_crash_runtime(void (*install)(void)) {
    if (owner != 0) {
        install();
    } else if (n_runtimes < 4) {
        runtimes[n_runtimes++] = install;
    }
}

void lutra_crash(const char *what) {
    end(what);
}

void lutra_worker_lost(const char *endpoint) {
    char text[512];
    snprintf(text, sizeof(text),
             "worker %s is lost: it ended, or the network to it did; start 'lutra worker' there again, then "
             "repeat this command",
             endpoint);
    text_before = text_after = ""; // the model is not to blame
    end(text);
}

void lutra_on_crash_remove(int place, const char *path) {
    if (place >= 0 && place < LUTRA_CRASH_FILES) {
        doomed[place] = path;
    }
}
