/* A thread that ends this process when another one has ended. It knows no Python: it neither waits
 * for whoever runs Python here, nor makes them wait. */
#ifndef PESCADOR_WATCH_H
#define PESCADOR_WATCH_H

#include <Python.h>

#ifdef _WIN32
#include <windows.h>

static void
pescador_watch_run(void *sentinel)
{
    WaitForSingleObject((HANDLE)sentinel, INFINITE);
    ExitProcess(1);
}

static inline int
pescador_watch(long long sentinel, long long parent, int milliseconds)
{
    (void)parent, (void)milliseconds;
    return PyThread_start_new_thread(pescador_watch_run, (void *)(intptr_t)sentinel) !=
           PYTHREAD_INVALID_THREAD_ID;
}

#else
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

/* There is one per process; what it reads was written before it began. */
static struct pollfd pescador_watched;
static pid_t pescador_watched_parent;
static int pescador_watched_every;

static void
pescador_watch_run(void *unused)
{
    sigset_t all;
    (void)unused;
    /* Signals are for those who run Python. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        int ready = poll(&pescador_watched, 1, pescador_watched_every);
        if (ready > 0 || (ready < 0 && errno != EINTR && errno != ENOMEM) ||
            (pescador_watched_parent > 0 && getppid() != pescador_watched_parent)) {
            _exit(1);
        }
    }
}

/* Start it; return whether that worked. */
static inline int
pescador_watch(long long sentinel, long long parent, int milliseconds)
{
    pescador_watched.fd = (int)sentinel;
    pescador_watched.events = POLLIN;
    pescador_watched_parent = (pid_t)parent;
    pescador_watched_every = milliseconds;
    return PyThread_start_new_thread(pescador_watch_run, NULL) != PYTHREAD_INVALID_THREAD_ID;
}

#endif
#endif
