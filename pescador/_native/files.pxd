from libc.stdint cimport int64_t, uint64_t


cdef extern from "_native/files.h" nogil:
    ctypedef struct pescador_stamp:
        int64_t size, seconds, nanoseconds
        uint64_t inode, device
        bint is_regular
    int pescador_stamp_path(const char* path, pescador_stamp* stamp)
    int pescador_stamp_file(int file, pescador_stamp* stamp)
    bint pescador_is_file(int file, const pescador_stamp* stamp)
    void* pescador_map_file(int file, size_t size)
    void pescador_unmap_file(void* address, size_t size)
    void pescador_advise(void* address, size_t size, bint at_random)
    int64_t pescador_read(int file, char* to, int64_t n, int64_t at, int64_t* done)
