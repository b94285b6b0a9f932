"""Who decompresses deflated values: `isal` where it is installed, which is faster, or zlib."""

import functools
import sys
import zlib
from typing import Any

__all__ = ["inflater"]


@functools.cache
def inflater() -> Any:
    """Return a module with the interface of `zlib`."""
    # A Python without the GIL would get it back with a module that may need it.
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        try:
            from isal import isal_zlib
        except ImportError:
            pass
        else:
            return isal_zlib
    return zlib
