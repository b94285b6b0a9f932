/* Words that say nothing but "look at the memory", at an end of a pipe. Linux only.
 *
 * A pipe of multiprocessing is a pair of sockets; what it sends is preceded by its length, in four
 * bytes. */
#pragma once

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#define PESCADOR_WAKE "\0\0\0\1w"
enum { PESCADOR_WAKE_SIZE = sizeof(PESCADOR_WAKE) - 1 };

enum { PESCADOR_SILENCE, PESCADOR_WOKEN, PESCADOR_MESSAGE, PESCADOR_SIGNAL };

/* Say it. Who has not read what fills the pipe is awake, and who is gone does not need it. */
static inline void
pescador_ring(int pipe)
{
    ssize_t n;
    do {
        n = send(pipe, PESCADOR_WAKE, PESCADOR_WAKE_SIZE, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
}

/* Wait for messages, for some milliseconds or, below 0, without end; take those words that come
 * first. Return whether there were any, and nothing after them, or there is another message, or the
 * end. */
static inline int
pescador_listen(int pipe, int milliseconds)
{
    char said[64 * PESCADOR_WAKE_SIZE];
    struct pollfd polled = {pipe, POLLIN, 0};
    ssize_t n, words = 0;
    int ready = poll(&polled, 1, milliseconds);
    if (ready <= 0) {
        return ready == 0 ? PESCADOR_SILENCE : errno == EINTR ? PESCADOR_SIGNAL : PESCADOR_MESSAGE;
    }
    n = recv(pipe, said, sizeof said, MSG_PEEK | MSG_DONTWAIT);
    while (n - words >= PESCADOR_WAKE_SIZE &&
           memcmp(said + words, PESCADOR_WAKE, PESCADOR_WAKE_SIZE) == 0) {
        words += PESCADOR_WAKE_SIZE;
    }
    if (words > 0 && recv(pipe, said, (size_t)words, MSG_DONTWAIT) != words) {
        return PESCADOR_MESSAGE;
    }
    return words > 0 && words == n ? PESCADOR_WOKEN : PESCADOR_MESSAGE;
}
