"""The watch that a worker keeps on the process that it works for.

docs/inside/channel.rst explains it.
"""

from pescador._native.watch cimport watch


def exit_with(long long sentinel, long long parent, int milliseconds):
    """End this process when another one has ended, whatever it is busy with.

    Parameters
    ----------
    sentinel : int
        A descriptor or handle that is ready when the other one has ended, unless somebody else
        holds its end open.
    parent : int
        The process id of the other one, to see whether it still is the parent of this one; 0 if it
        never was.
    milliseconds : int
        How often to look for that.

    Raises
    ------
    RuntimeError
        If no thread can be started.
    """
    if not watch(sentinel, parent, milliseconds):
        raise RuntimeError("can't start new thread")
