"""The version, in the one place that the build and the package both read."""

short_version = "3.0"
version = "3.0.0+cython.1"
