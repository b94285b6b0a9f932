/* Files as a source needs them: whether one has changed, a read-only map of one, and reads at given
 * places. On Windows there are no maps here: files are read. */
#pragma once

#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* What tells a file from another one at its path, and from itself after a change. */
typedef struct {
    int64_t size, seconds, nanoseconds;    /* of the last change of its content */
    uint64_t inode, device;
    int is_regular;
} pescador_stamp;

#ifdef _WIN32
#include <io.h>

typedef struct _stat64 pescador_status;
#define PESCADOR_STAT _stat64
#define PESCADOR_FSTAT _fstat64
#define PESCADOR_NANOSECONDS(status) 0
#define PESCADOR_IS_REGULAR(mode) (((mode) & _S_IFMT) == _S_IFREG)

static inline void *
pescador_map_file(int file, size_t size)
{
    (void)file, (void)size;
    errno = ENOSYS;
    return NULL;
}

static inline void
pescador_unmap_file(void *address, size_t size)
{
    (void)address, (void)size;
}

static inline void
pescador_advise(void *address, size_t size, int at_random)
{
    (void)address, (void)size, (void)at_random;
}

/* Each reader has a descriptor of its own, so its position may be moved. */
static inline int64_t
pescador_read_some(int file, char *to, size_t n, int64_t at)
{
    if (_lseeki64(file, at, SEEK_SET) < 0) {
        return -1;
    }
    return _read(file, to, n > INT32_MAX ? INT32_MAX : (unsigned int)n);
}

#else
#include <sys/mman.h>
#include <unistd.h>

typedef struct stat pescador_status;
#define PESCADOR_STAT stat
#define PESCADOR_FSTAT fstat
#define PESCADOR_IS_REGULAR(mode) S_ISREG(mode)
#ifdef __APPLE__
#define PESCADOR_NANOSECONDS(status) (status).st_mtimespec.tv_nsec
#else
#define PESCADOR_NANOSECONDS(status) (status).st_mtim.tv_nsec
#endif

static inline void *
pescador_map_file(int file, size_t size)
{
    void *address = mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0);
    return address == MAP_FAILED ? NULL : address;
}

static inline void
pescador_unmap_file(void *address, size_t size)
{
    (void)munmap(address, size);
}

/* Whether to read more from the disk than what is asked for. It is advice: that it fails is no error. */
static inline void
pescador_advise(void *address, size_t size, int at_random)
{
    (void)madvise(address, size, at_random ? MADV_RANDOM : MADV_NORMAL);
}

static inline int64_t
pescador_read_some(int file, char *to, size_t n, int64_t at)
{
    return pread(file, to, n, (off_t)at);
}
#endif

/* A stamp from what stat() has told, unless it has failed; return 0 or the error. */
static inline int
pescador_stamp_from(int failed, const pescador_status *status, pescador_stamp *stamp)
{
    *stamp = (pescador_stamp){0};
    if (failed) {
        return errno;
    }
    *stamp = (pescador_stamp){status->st_size, status->st_mtime, PESCADOR_NANOSECONDS(*status),
                              status->st_ino, status->st_dev,
                              PESCADOR_IS_REGULAR(status->st_mode)};
    return 0;
}

static inline int
pescador_stamp_path(const char *path, pescador_stamp *stamp)
{
    pescador_status status;
    return pescador_stamp_from(PESCADOR_STAT(path, &status), &status, stamp);
}

static inline int
pescador_stamp_file(int file, pescador_stamp *stamp)
{
    pescador_status status;
    return pescador_stamp_from(PESCADOR_FSTAT(file, &status), &status, stamp);
}

/* Whether a descriptor still is that of the file of this stamp. Code that closes all descriptors, such
 * as os.closerange, leaves their numbers to the next files that are opened. */
static inline int
pescador_is_file(int file, const pescador_stamp *stamp)
{
    pescador_stamp now;
    return pescador_stamp_file(file, &now) == 0 && now.inode == stamp->inode &&
           now.device == stamp->device;
}

/* Read n bytes, of which some are done. Return how many there were before the file ended, or -errno;
 * after -EINTR the call may be repeated. */
static inline int64_t
pescador_read(int file, char *to, int64_t n, int64_t at, int64_t *done)
{
    while (*done < n) {
        int64_t got = pescador_read_some(file, to + *done, (size_t)(n - *done), at + *done);
        if (got < 0) {
            return -errno;
        }
        if (got == 0) {
            break;
        }
        *done += got;
    }
    return *done;
}
