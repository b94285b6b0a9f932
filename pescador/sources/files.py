"""Files, for one visit after another: opened, mapped or read, and remembered for a while.

It knows no format. What it keeps stays bounded: maps, bytes mapped, descriptors. No locks, so that
a fork finds none held.
"""

import contextlib
import errno
import os
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from .._stores import Map, Stamp, mapped, physical_memory, read_runs
from ..exceptions import DataError, PescadorError

try:
    import resource
except ImportError:  # pragma: no cover - Windows, which has no such limits
    resource = None  # type: ignore[assignment]

__all__ = [
    "File",
    "Recent",
    "advise",
    "map_file",
    "open_regular",
    "reading",
    "shows_changes",
    "trim",
]

V = TypeVar("V")

# A quarter of the maps that Linux allows a process, unless told otherwise.
MOST_MAPS = 2**14
# Files whose layout, or whose arrays, are remembered.
MOST_LAYOUTS = 2**16
MOST_KEPT = 2**14
# So many descriptors are worth no look at the limit.
FEW = 8
# Below so many bytes, a file is in memory after a few reads, whatever was read ahead.
LARGE = 2**24
# Each page of a row that is not read ahead is a read of its own: up to four are less than one read
# of the 128 KB that Linux reads ahead, or of more.
MOST_SCATTERED = 2**14
# A file may change again within one tick of its clock, which shows in no time stamp.
TICK = 50_000_000


MOST_BYTES = physical_memory() // 4


def _limit(name: str) -> float:
    """Return a quarter of what this process may have of something."""
    if resource is None:  # pragma: no cover - Windows
        return float("inf")
    soft = resource.getrlimit(getattr(resource, name))[0]
    return float("inf") if soft == resource.RLIM_INFINITY else soft // 4


class Recent(Generic[V]):
    """Values by key. Those that were not asked for lately go first.

    Parameters
    ----------
    most : int
        How many to hold.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """Return a value, or None."""
        value = self._values.get(key)
        if value is not None:
            try:
                self._values.move_to_end(key)
            except KeyError:  # pragma: no cover - another thread has just dropped it
                return None
        return value

    def put(self, key: Hashable, value: V) -> None:
        """Hold a value in place of the one that was there."""
        self._values[key] = value
        while len(self._values) > self.most:
            self.drop()

    def pop(self, key: Hashable) -> V | None:
        """Return a value, or None, and hold it no longer."""
        return self._values.pop(key, None)

    def drop(self) -> bool:
        """Let go of the value that was asked for longest ago; return whether there was one."""
        try:
            self._values.popitem(last=False)
        except KeyError:
            return False
        return True

    def clear(self) -> None:
        """Let go of all."""
        self._values.clear()


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Tell of an error in what a file holds, or on the way to it, as a `DataError`."""
    try:
        yield
    except (PescadorError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{what} does not exist") from error
    except PermissionError as error:
        raise DataError(f"{what} may not be read: permission denied") from error
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(
            f"{what} cannot be read; is it damaged? {type(error).__name__}: {error}"
        ) from error


def open_regular(path: str) -> tuple[int, Stamp]:
    """Open a file for reading; return its descriptor and what tells it from others."""
    with reading(path):
        # Nonblocking: opening a pipe would wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not _idle:
                raise
            _close_idle(0)
            descriptor = os.open(path, flags)
        try:
            stamp = Stamp(path, descriptor)
            if not stamp.is_regular:
                kind = "a folder" if os.path.isdir(path) else "a pipe or a device"
                raise DataError(f"{path} is {kind}; a file was expected")
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor, stamp


def _close_idle(most: float) -> None:
    """Keep fewer descriptors of files that nobody reads at present."""
    while len(_idle) > most:
        with contextlib.suppress(KeyError):
            file, descriptor = _idle.popitem(last=False)
            file.release(descriptor)


def shows_changes(stamp: Stamp) -> bool:
    """Whether any further change of a file would show in its stamp."""
    return abs(time.time_ns() - stamp.changed) > TICK


def map_file(descriptor: int, size: int, kept: Recent[Any]) -> Map | None:
    """Map a file, if need be in place of some that are kept; None if there is no room for it."""
    most_space = _limit("RLIMIT_AS")
    while True:
        count, space = mapped()
        if count < MOST_MAPS and space + size <= most_space:
            break
        if not kept.drop():
            return None
    for _ in range(2):
        try:
            return Map(descriptor, size)
        except OSError:
            kept.clear()
    return None


def advise(arrays: Iterable[Any], n_bytes: int) -> None:
    """Tell the system how the maps of large files under some arrays will be read.

    The system reads ahead around each page that is not in memory, which is for nothing where items
    are drawn at random and small: of a large file, none of the rest will be asked for soon.

    Parameters
    ----------
    arrays : iterable of arrays
        Those that are over no map are left alone.
    n_bytes : int
        The size of the items that are drawn at random; 0 for any other order.
    """
    at_random = 0 < n_bytes <= MOST_SCATTERED
    for array in arrays:
        whole = getattr(array, "base", None)
        if type(whole) is Map and whole.size >= LARGE:
            whole.advise(at_random)


def trim(kept: Recent[Any]) -> None:
    """Keep fewer maps, while all maps together hold more than a quarter of the memory."""
    while mapped()[1] > MOST_BYTES and kept.drop():
        pass


# Descriptors of files that are read, not mapped, while nobody reads them.
_idle: OrderedDict["File", int] = OrderedDict()


class File:
    """A file of which parts are read. It is opened when that is needed, and must not change.

    Parameters
    ----------
    path : str
        Where it is.
    stamp : Stamp
        What it was when its layout was read.
    """

    __slots__ = ("path", "stamp")

    def __init__(self, path: str, stamp: Stamp) -> None:
        self.path = path
        self.stamp = stamp

    def read(self, what: str, places: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.uint8]:
        """Return runs of ``n`` bytes, one behind the other.

        Raises
        ------
        DataError
            If the file ends before, was replaced, or cannot be read.
        """
        descriptor = _idle.pop(self, None)
        # Other code may have closed it, and given its number to another file.
        if descriptor is None or not self.stamp.is_of(descriptor):
            descriptor, stamp = open_regular(self.path)
            if stamp != self.stamp:
                os.close(descriptor)
                raise DataError(f"{self.path} was changed while it was read")
        try:
            return read_from(descriptor, what, places, n)
        finally:
            if _idle.setdefault(self, descriptor) != descriptor:
                os.close(descriptor)
            if len(_idle) > FEW:
                _close_idle(min(_limit("RLIMIT_NOFILE"), 1024))

    def release(self, descriptor: int) -> None:
        """Close a descriptor that was kept, unless it is another file's by now."""
        if self.stamp.is_of(descriptor):
            os.close(descriptor)

    def close(self) -> None:
        """Keep no descriptor. What is read later opens the file again."""
        descriptor = _idle.pop(self, None)
        if descriptor is not None:
            self.release(descriptor)


def read_from(
    descriptor: int, what: str, places: npt.NDArray[np.int64], n: int
) -> npt.NDArray[np.uint8]:
    """Return runs of ``n`` bytes of an open file, one behind the other."""
    to = np.empty(len(places) * n, np.uint8)
    if to.size:
        try:
            read_runs(descriptor, places, n, to)
        except EOFError as error:
            raise DataError(f"{what} was truncated: {error}") from error
        except OSError as error:
            raise DataError(f"{what} cannot be read: {error.strerror}") from error
    return to
