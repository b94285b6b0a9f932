"""What goes wrong in pescador, as types."""


class PescadorError(Exception):
    """The root of every error that pescador raises on its own account."""


class DataError(PescadorError):
    """An item is not data, that is, not a mapping of keys to arrays."""
