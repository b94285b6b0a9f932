"""Streams over arrays and files of arrays."""

from .rows import Rows
from .windows import Windows

__all__ = ["Rows", "Windows"]
