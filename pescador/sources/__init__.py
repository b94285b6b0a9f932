"""Streams over arrays and files of arrays."""
