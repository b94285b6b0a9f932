"""What goes wrong in pescador, as types."""


class PescadorError(Exception):
    """The root of every error that pescador raises on its own account."""


class ArgumentError(PescadorError, ValueError):
    """An argument, or an attribute that was assigned, is none that will do."""


class DataError(PescadorError):
    """Data are not what they should be: an item that is no mapping, a file, a key or a shape."""
