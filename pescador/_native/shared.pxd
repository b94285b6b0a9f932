# Memory that two processes share. Linux only.

from libc.stdint cimport uint64_t


cdef extern from "_native/shared.h":
    int shared_create "pescador_shared_create" () nogil
    char* shared_map "pescador_shared_map" (int fd, size_t size) nogil
    int shared_reserve "pescador_shared_reserve" (
        int fd, char* base, size_t start, size_t size) noexcept nogil
    void shared_drop "pescador_shared_drop" (char* base, size_t start, size_t stop) noexcept nogil
    char* private_map "pescador_private_map" (size_t size) noexcept nogil
    void private_cover "pescador_private_cover" (
        char* base, size_t size, bint accessible) noexcept nogil
    void private_move "pescador_private_move" (char* source, size_t size, char* to) noexcept nogil
    uint64_t load "pescador_load" (uint64_t* word) noexcept nogil
    void store "pescador_store" (uint64_t* word, uint64_t value) noexcept nogil
    uint64_t exchange "pescador_exchange" (uint64_t* word, uint64_t value) noexcept nogil
    void lock "pescador_lock" (char* flag) noexcept nogil
    void unlock "pescador_unlock" (char* flag) noexcept nogil
