cdef extern from "_native/copy.h":
    void pescador_copy(char* to, const char* source, size_t n, bint past_cache) noexcept nogil
