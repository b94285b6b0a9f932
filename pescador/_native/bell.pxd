# Words on a pipe that wake its other end. Linux only.


cdef extern from "_native/bell.h" nogil:
    int WOKEN "PESCADOR_WOKEN"
    int MESSAGE "PESCADOR_MESSAGE"
    int SIGNAL "PESCADOR_SIGNAL"
    void wake_other_end "pescador_ring" (int pipe) noexcept
    int wait_for_words "pescador_listen" (int pipe, int milliseconds) noexcept
