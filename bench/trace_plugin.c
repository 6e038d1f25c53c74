// SPDX-License-Identifier: MIT
// A TCG plugin for qemu-user: the exact sequence of instructions of one marked region of a program.
//
//   cc -O2 -fPIC -shared -o trace.so trace_plugin.c
//   qemu-aarch64 -plugin trace.so,out=FILE PROGRAM       (plugin API 1: QEMU 6.0 to 9.0)
//
// The program marks the region with two system calls that do not exist, syscall(MARK, 1) before and
// syscall(MARK, 0) after it; see main.c. FILE then holds, all numbers in host byte order,
//
//   u64 blocks   u64 steps
//   per block    u32 n   u32 word[n]      straight-line code as QEMU translated it
//   per step     u32 block                the blocks in the order they ran
//
// QEMU's packages ship no header, so the few functions of its API that are used are declared here.
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MARK = 0xA5A5 };

// ---- QEMU's plugin API -----------------------------------------------------------------------------

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void tb_trans_cb(plugin_id id, struct qemu_plugin_tb *tb);
typedef void vcpu_exec_cb(unsigned vcpu, void *user);
typedef void syscall_cb(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                        uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
typedef void exit_cb(plugin_id id, void *user);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, tb_trans_cb *cb);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, vcpu_exec_cb *cb, int flags, void *user);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, syscall_cb *cb);
void qemu_plugin_register_atexit_cb(plugin_id id, exit_cb *cb, void *user);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);

// ---- the record ------------------------------------------------------------------------------------

// A growing array of 32-bit words.
struct words {
    uint32_t *data;
    size_t n;
    size_t capacity;
};

static void push(struct words *w, uint32_t word) {
    if (w->n == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 1 << 16;
        w->data = realloc(w->data, w->capacity * sizeof(*w->data));
        if (!w->data) {
            fprintf(stderr, "trace_plugin: out of memory\n");
            abort();
        }
    }
    w->data[w->n++] = word;
}

static const char *path;
static bool recording;
static struct words blocks; // as in the file
static uint32_t n_blocks;
static struct words steps;

static void on_exec(unsigned vcpu, void *block) {
    (void)vcpu;
    if (recording) {
        push(&steps, (uint32_t)(uintptr_t)block);
    }
}

static void on_translate(plugin_id id, struct qemu_plugin_tb *tb) {
    (void)id;
    const size_t n = qemu_plugin_tb_n_insns(tb);
    push(&blocks, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof(word));
        push(&blocks, word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_exec, 0, (void *)(uintptr_t)n_blocks++);
}

static void on_syscall(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == MARK) {
        recording = a1 != 0;
    }
}

static void on_end(plugin_id id, void *user) {
    (void)id, (void)user;
    FILE *file = fopen(path, "wb");
    const uint64_t sizes[2] = {n_blocks, steps.n};
    if (!file || fwrite(sizes, sizeof(sizes), 1, file) != 1 ||
        fwrite(blocks.data, sizeof(uint32_t), blocks.n, file) != blocks.n ||
        fwrite(steps.data, sizeof(uint32_t), steps.n, file) != steps.n || fclose(file) != 0) {
        perror(path);
    }
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0) {
        fprintf(stderr, "trace_plugin: use -plugin trace.so,out=FILE\n");
        return 1;
    }
    path = strdup(argv[0] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_end, NULL);
    return 0;
}
