# A thread that ends this process when another one has ended.


cdef extern from "_native/watch.h":
    bint watch "pescador_watch" (long long sentinel, long long parent, int milliseconds)
