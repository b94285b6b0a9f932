"""For training loops of JAX: batches on the devices before they are needed.

``import pescador.jax`` imports jax; ``import pescador`` does not.
"""

import collections
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from ._checks import as_count, is_masked
from .exceptions import ArgumentError, DataError
from .maps import _opened

__all__ = ["prefetch"]

#: Where an array of the host begins that JAX can use as it is, on the CPU.
_ALIGNMENT = 64


def prefetch(
    stream: Iterable[Any],
    size: int = 2,
    *,
    devices: Sequence[Any] | None = None,
    sharding: Any = None,
) -> Generator[Any, None, None]:
    """Copy batches to devices before they are asked for.

    Parameters
    ----------
    stream : iterable
        Batches: arrays, or dicts, lists and tuples of them, nested as they may be (pytrees).
    size : int > 0
        How many batches are on the devices at a time: the one in use, and those ahead of it. With
        2, one is copied while a step is made on the other.
    devices : sequence of jax.Device or None
        Devices that share each batch: each gets an equal part of the first axis, in this order.
        None is JAX's default device.
    sharding : jax.sharding.Sharding or None
        Instead of `devices`, how arrays are divided, over a mesh of several axes for example.

    Yields
    ------
    batch : object
        The same with arrays of JAX. What JAX has no type for (text, objects, times) stays as it is,
        and so do masked arrays and Python's numbers.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    DataError
        If the devices cannot share a batch equally. It is raised in the place of that batch, as are
        the errors of the stream: the batches before it come first.

    Notes
    -----
    JAX has 64 bits only with ``jax_enable_x64``: a float64 becomes a float32 without it.

    Nothing of a batch is read any more once its stream is asked for the next one, which may be
    written to the same memory. On the CPU, JAX would go on using that memory, and is given a copy;
    to other devices, the copy is complete by then.

    An array without axes is copied to each device.

    An iterator that is passed in stays open. Where it is a `Stream`, its ``state_dict`` counts the
    batches ahead: pass ``itertools.islice(stream, n)`` to save it after n of them.

    Examples
    --------
    >>> batches = [{"x": np.full(8, i, np.float32)} for i in range(3)]
    >>> for batch in prefetch(batches):
    ...     print(type(batch["x"]).__name__, float(batch["x"].sum()))
    ArrayImpl 0.0
    ArrayImpl 8.0
    ArrayImpl 16.0
    """
    size = as_count("size", size)
    if devices is not None:
        if sharding is not None:
            raise ArgumentError("devices and sharding cannot both be given")
        chosen = list(devices) if isinstance(devices, Iterable) else []
        if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
            raise ArgumentError(f"devices={devices!r} must be None or a list of jax.Device")
        if len(set(chosen)) < len(chosen):
            raise ArgumentError(f"devices={devices!r} must be different ones")
        mesh = jax.sharding.Mesh(np.array(chosen), ("batch",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    elif not (sharding is None or isinstance(sharding, jax.sharding.Sharding)):
        raise ArgumentError(f"sharding={sharding!r} must be None or a jax.sharding.Sharding")
    return _prefetched(stream, size, _Place(sharding))


def _prefetched(stream: Iterable[Any], size: int, place: "_Place") -> Generator[Any, None, None]:
    opened = _opened(stream)
    del stream  # see _opened
    ready: collections.deque[Any] = collections.deque()
    end: Exception | None = None
    with opened as source:
        items = iter(source)
        while True:
            while end is None and len(ready) < size:
                try:
                    ready.append(place.put(next(items)))
                except Exception as error:
                    end = error
            if ready:
                yield ready.popleft()
            elif end is None or isinstance(end, StopIteration):
                return
            else:
                try:
                    raise end
                finally:
                    del end


class _Place:
    """Where batches go: the default device, or those of a sharding."""

    def __init__(self, sharding: Any) -> None:
        self.sharding = self.scalars = sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            whole = jax.sharding.PartitionSpec()
            self.scalars = jax.sharding.NamedSharding(sharding.mesh, whole)
        devices = jax.device_put(0).devices() if sharding is None else sharding.device_set
        self.copies = any(device.platform == "cpu" for device in devices)

    def put(self, batch: Any) -> Any:
        """Return a batch with its arrays on the devices."""
        leaves, tree = jax.tree.flatten(batch)
        numbers, arrays, shardings = [], [], []
        for number, leaf in enumerate(leaves):
            if _is_array(leaf):
                sharding = self.sharding if leaf.ndim else self.scalars
                if sharding is not None:
                    self.check(batch, number, leaf, sharding)
                numbers.append(number)
                arrays.append(leaf if isinstance(leaf, jax.Array) else self.own(np.asarray(leaf)))
                shardings.append(sharding)
        arrays = jax.device_put(arrays, None if self.sharding is None else shardings)
        if not self.copies:
            # Meanwhile the devices compute what they were told to.
            jax.block_until_ready(arrays)
        for number, array in zip(numbers, arrays, strict=True):
            leaves[number] = array
        return jax.tree.unflatten(tree, leaves)

    def own(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array, of a type that JAX has, whose memory nobody else writes to."""
        dtype = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
        if not self.copies and array.dtype == dtype:
            return array
        n_bytes = array.size * dtype.itemsize
        memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        copy: npt.NDArray[Any] = memory[start : start + n_bytes].view(dtype).reshape(array.shape)
        copy[...] = array
        return copy

    def check(self, batch: Any, number: int, leaf: Any, sharding: Any) -> None:
        """Refuse an array that cannot be divided."""
        try:
            sharding.shard_shape(leaf.shape)
        except (ValueError, IndexError) as error:
            path = jax.tree_util.tree_flatten_with_path(batch)[0][number][0]
            raise DataError(
                f"batch{jax.tree_util.keystr(path)} has the shape {leaf.shape}, which "
                f"{len(sharding.device_set)} devices cannot share: by {sharding!r}, each axis that "
                "is divided must be there, and be a multiple of the devices along it"
            ) from error


def _is_array(leaf: Any) -> bool:
    """Tell whether JAX has a type for what this is, and it is an array or a scalar of NumPy."""
    if isinstance(leaf, jax.Array):
        return True
    if not isinstance(leaf, np.ndarray | np.generic) or is_masked(leaf):
        return False
    if leaf.dtype.kind in "biufc":
        # Except the long numbers of C.
        return leaf.dtype.itemsize <= (16 if leaf.dtype.kind == "c" else 8)
    return bool(jax.dtypes.issubdtype(leaf.dtype, np.number))
