cdef extern from "_native/prefetch.h":
    # Any address will do.
    void PREFETCH "PESCADOR_PREFETCH" (const void* address) noexcept nogil
    void* list_items "pescador_items" (list values) noexcept
    void pescador_fetch(dict fields, int step) noexcept
    void pescador_fetch_dict(object instance) noexcept
