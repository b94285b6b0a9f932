"""An end of a pipe that wakes the other one, and is woken, without Python. Linux only.

docs/inside/channel.rst explains it.
"""

from cpython.exc cimport PyErr_CheckSignals

from pescador._native.bell cimport MESSAGE, SIGNAL, WOKEN, wait_for_words, wake_other_end
from pescador._native.files cimport pescador_is_file, pescador_stamp_file


cdef class Bell:
    """Says and hears `protocol.WAKE`; other messages are left to those who read the pipe.

    Parameters
    ----------
    pipe : Connection
    """

    def __init__(self, pipe):
        self.pipe = pipe.fileno()
        pescador_stamp_file(self.pipe, &self.stamp)

    cdef bint is_open(self) noexcept:
        """Whether the descriptor is there; whoever has closed it may have another file there."""
        return pescador_is_file(self.pipe, &self.stamp)

    cpdef object ring(self):
        """Wake the other end."""
        if self.is_open():
            wake_other_end(self.pipe)

    def listen(self, timeout):
        """Wait until it wakes us, for some seconds, or without end for None.

        Returns
        -------
        what : {"woken", "message", "silence"}
            A message is to be read, or the end of the pipe is. It is silent as well when a signal
            was handled meanwhile.
        """
        cdef int heard = self.hear(-1 if timeout is None else <int>(1000 * <double>timeout))
        return "woken" if heard == WOKEN else "message" if heard == MESSAGE else "silence"

    cdef int hear(self, int milliseconds) except -1:
        """See `listen`; below 0, wait without end."""
        cdef int heard = MESSAGE
        if self.is_open():
            with nogil:
                heard = wait_for_words(self.pipe, milliseconds)
        if heard == SIGNAL:
            PyErr_CheckSignals()
        return heard
