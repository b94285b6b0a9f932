/* A thread that ends this process when another one has ended. It knows no Python: it neither waits
 * for whoever runs Python here, nor makes them wait. */
#pragma once

#include <stdint.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

static DWORD WINAPI
pescador_watch_run(void *sentinel)
{
    (void)WaitForSingleObject((HANDLE)sentinel, INFINITE);
    ExitProcess(1);
    return 1;
}

static inline int
pescador_watch(long long sentinel, long long parent, int milliseconds)
{
    HANDLE thread = CreateThread(NULL, 0, pescador_watch_run, (void *)(intptr_t)sentinel, 0, NULL);
    (void)parent, (void)milliseconds;
    return thread != NULL && CloseHandle(thread);
}

#else
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* There is one per process; what it reads was written before it began. */
static struct pollfd pescador_watched;
static pid_t pescador_watched_parent;
static int pescador_watched_every;

static void *
pescador_watch_run(void *unused)
{
    (void)unused;
    for (;;) {
        int ready = poll(&pescador_watched, 1, pescador_watched_every);
        if (ready > 0 || (ready < 0 && errno != EINTR && errno != ENOMEM) ||
            (pescador_watched_parent > 0 && getppid() != pescador_watched_parent)) {
            _exit(1);
        }
    }
    return NULL;
}

/* Start it; return whether that worked. */
static inline int
pescador_watch(long long sentinel, long long parent, int milliseconds)
{
    sigset_t all, before;
    pthread_t thread;
    int error;
    pescador_watched.fd = (int)sentinel;
    pescador_watched.events = POLLIN;
    pescador_watched_parent = (pid_t)parent;
    pescador_watched_every = milliseconds;
    /* It inherits this: signals are for those who run Python. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, NULL, pescador_watch_run, NULL);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) {
        (void)pthread_detach(thread);
    }
    return error == 0;
}

#endif
