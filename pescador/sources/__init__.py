"""Streams over arrays and files of arrays."""

from .pool import from_files
from .rows import Rows
from .windows import Windows

__all__ = ["Rows", "Windows", "from_files"]
