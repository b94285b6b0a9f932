"""Pools of sources: one for each file."""

import glob
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar, overload

from ..core import Streamer
from ..exceptions import ArgumentError
from .rows import Rows

__all__ = ["files", "from_files"]

S = TypeVar("S", bound=Streamer[Any])
Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def files(pattern_or_paths: Any) -> list[str]:
    """Return the paths that a pattern matches, in natural order, or those of a list as they are.

    Parameters
    ----------
    pattern_or_paths : str, PathLike or iterable of them
        A path, in which ``*``, ``?`` and ``[...]`` stand for parts of a name, ``**`` for any
        folders, and ``~`` for the home folder; or a list of paths.

    Returns
    -------
    paths : list of str
        In natural order, ``a2`` before ``a10``: the same on each system.

    Raises
    ------
    ArgumentError
        If there is no such file.
    """
    if isinstance(pattern_or_paths, str | os.PathLike):
        pattern = os.path.expanduser(os.fspath(pattern_or_paths))
        # A name may have brackets of its own.
        if os.path.exists(pattern):
            return [pattern]
        found = sorted(glob.glob(pattern, recursive=True), key=_natural)
        if not found:
            raise ArgumentError(f"no file matches {pattern!r}")
        return found
    try:
        found = [os.fspath(path) for path in pattern_or_paths]
    except TypeError:
        raise ArgumentError(
            f"data={pattern_or_paths!r:.200} must be a pattern of paths, or a list of paths"
        ) from None
    if not found:
        raise ArgumentError("data=[] has no path; a list of paths, or a pattern, is needed")
    return found


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Order numbers in names by their value, and names by their characters, whatever the locale."""
    parts = re.split(r"(\d+)", path.replace(os.sep, "/"))
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


@overload
def from_files(pattern_or_paths: Paths, **options: Any) -> list[Rows]: ...
@overload
def from_files(pattern_or_paths: Paths, source: Callable[..., S], **options: Any) -> list[S]: ...
def from_files(
    pattern_or_paths: Paths, source: Callable[..., Any] = Rows, **options: Any
) -> list[Any]:
    """Make a pool of sources, one for each file.

    No file is opened before its stream is started.

    Parameters
    ----------
    pattern_or_paths : str, PathLike or iterable of them
        A pattern such as ``"features/*.npz"``, whose files are taken in natural order (``a2``
        before ``a10``), or a list of paths, whose order is kept.
    source : type or function
        Called with each path: `Rows`, `Windows`, or a function that returns a streamer.
    **options
        Passed to `source` as well.

    Returns
    -------
    pool : list of Streamer

    Raises
    ------
    ArgumentError
        If there is no such file, or an option is invalid.

    Examples
    --------
    >>> import tempfile, numpy as np, pescador
    >>> folder = tempfile.mkdtemp()
    >>> for i in range(3):
    ...     np.savez(f"{folder}/{i}.npz", x=np.arange(9) + 10 * i)
    >>> pool = from_files(f"{folder}/*.npz", random_state=0)
    >>> mux = pescador.ShuffledMux(pool, random_state=0)
    >>> print(*[item["x"] for item in mux(max_iter=6)])
    16 22 13 16 18 13
    """
    if not callable(source):
        raise ArgumentError(f"source={source!r} must be Rows, Windows, or a function of a path")
    return [source(path, **options) for path in files(pattern_or_paths)]
