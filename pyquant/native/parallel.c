// SPDX-License-Identifier: MIT
#include "quant.h"

#include <pthread.h>
#include <stdatomic.h>

enum { MAX_THREADS = 256 };

struct job {
    atomic_llong next;
    int64_t n;
    lutra_task *task;
    void *context;
};

static void *work(void *argument) {
    struct job *job = argument;
    for (;;) {
        int64_t i = atomic_fetch_add(&job->next, 1);
        if (i >= job->n) {
            return NULL;
        }
        job->task(job->context, i);
    }
}

void lutra_parallel(int64_t n, int threads, lutra_task *task, void *context) {
    struct job job = {.n = n, .task = task, .context = context};
    atomic_init(&job.next, 0);
    pthread_t helper[MAX_THREADS];
    int helpers = 0;
    // A thread that cannot be started is not missed: the others take its share.
    while (helpers + 1 < threads && helpers + 1 < n && helpers < MAX_THREADS &&
           pthread_create(&helper[helpers], NULL, work, &job) == 0) {
        helpers++;
    }
    work(&job);
    for (int i = 0; i < helpers; i++) {
        pthread_join(helper[i], NULL);
    }
}
