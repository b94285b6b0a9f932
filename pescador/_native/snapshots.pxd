# Files in memory, and private maps of them.

cdef extern from "_native/snapshots.h" nogil:
    enum: PESCADOR_MAPS                # 0 where the system has no such files
    int new_file "pescador_new_file" (const char* values, size_t n) noexcept
    void close_file "pescador_close_file" (int file, bint is_open) noexcept
    void* new_map "pescador_new_map" (int file, size_t n, Py_ssize_t* maps) noexcept
    void unmap "pescador_unmap" (void* map, size_t n, Py_ssize_t* maps) noexcept
    bint is_overwritten "pescador_is_overwritten" (const char* map, size_t n, int file) noexcept
