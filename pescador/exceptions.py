"""The errors and warnings of pescador."""


class PescadorError(Exception):
    """The base class of every error that pescador raises itself."""


class ArgumentError(PescadorError, ValueError):
    """An argument, or an attribute that was assigned, has an invalid value."""


class DataError(PescadorError):
    """Data are invalid: an item that is no mapping, a file that cannot be read, a key, a shape."""


class PescadorWarning(UserWarning):
    """What works, but hardly as it was meant, such as a mux that only visits an empty stream."""


class StateError(PescadorError):
    """The state of a stream cannot be taken exactly, or does not fit what it is to restore."""
