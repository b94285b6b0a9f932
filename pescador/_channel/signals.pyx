"""Handlers of signals deferred while something is begun or ended that has to be whole.

A handler that is written in Python may raise wherever the main thread runs Python code, but not
between two lines of compiled code, such as these.

docs/inside/channel.rst explains it.
"""

import _signal
import threading


cdef class Deferred:
    """Replaces handlers in Python between `defer` and `restore`, and notes the signals that come.

    Nothing happens in other threads than the main one, which alone runs handlers.
    """

    cdef list replaced                 # (number, handler) of each signal with a handler in Python
    cdef list noted                    # (handler, number, frame) of each signal that came
    cdef object error                  # what a handler raised meanwhile, or None

    def __call__(self, number, frame):
        for other, handler in self.replaced:
            if other == number:
                self.noted.append((handler, number, frame))

    cdef int caught(self, object error) except -1:
        if self.error is not None and error.__context__ is None:
            error.__context__ = self.error
        self.error = error
        return 0

    cdef object call(self, function, arguments=()):
        """The result of a function that does not fail by itself, whatever handlers raise in it."""
        for _ in range(100):
            try:
                return function(*arguments)
            except BaseException as error:
                self.caught(error)
        return None

    cdef int defer(self) except -1:
        self.replaced = []
        self.noted = []
        self.error = None
        if self.call(threading.current_thread) is not self.call(threading.main_thread):
            return 0
        for number in range(1, _signal.NSIG):
            handler = _signal.getsignal(number)
            if callable(handler):
                self.replaced.append((number, handler))
                self.call(_signal.signal, (number, self))
        return 0

    cdef int restore(self) except -1:
        """Put the handlers back, and call those of the signals that came; raise what they raise."""
        for number, handler in self.replaced:
            # Not where somebody has set another one meanwhile.
            if _signal.getsignal(number) is self:
                self.call(_signal.signal, (number, handler))
        for handler, number, frame in self.noted:
            try:
                handler(number, frame)
            except BaseException as error:
                self.caught(error)
        error = self.error
        self.replaced = self.noted = self.error = None
        if error is not None:
            raise error
        return 0


def whole(function, *arguments, **named):
    """Call a function as a whole: what handlers raise comes after it.

    Who calls this from compiled code is sure that the function was called, and once.
    """
    cdef Deferred deferred = Deferred()
    deferred.defer()
    try:
        result = function(*arguments, **named)
    finally:
        deferred.restore()
    # Not from within: what is returned there would never be freed where `restore` raises.
    return result


cdef class Guard:
    """A context that begins and ends something as a whole, whatever signal handlers raise.

    Parameters
    ----------
    begin : function
        Called on the way in.
    wait : function
        Called on the way out. Handlers run in it as ever, and may end it.
    end : function
        Called after that, in any case; also if `begin` was left halfway.
    """

    cdef object begin, wait, end
    cdef bint is_open

    def __init__(self, begin, wait, end):
        self.begin = begin
        self.wait = wait
        self.end = end

    def __enter__(self):
        self.is_open = True
        try:
            whole(self.begin)
        except BaseException:
            self.finish()
            raise
        return self

    def __exit__(self, *exc):
        self.finish()
        return False

    def __del__(self):
        # Where a handler raised between two lines of the `with` statement.
        self.finish()

    cdef int finish(self) except -1:
        if not self.is_open:
            return 0
        self.is_open = False
        try:
            self.wait()
        finally:
            whole(self.end)
        return 0
