cdef extern from "_native/prefetch.h":
    # Any address will do.
    void PREFETCH "PESCADOR_PREFETCH" (const void* address) noexcept nogil
    void* items_of "pescador_items" (list values) noexcept
    void prefetch_values "pescador_prefetch_values" (dict values) noexcept
