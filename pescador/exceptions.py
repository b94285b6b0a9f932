"""What goes wrong in pescador, as types."""


class PescadorError(Exception):
    """The root of every error that pescador raises on its own account."""


class DataError(PescadorError):
    """Data are not what they should be: an item that is no mapping, a file, a key or a shape."""
