"""For training loops of PyTorch: streams as data sets, arrays as tensors.

``import pescador.torch`` imports torch; ``import pescador`` does not.
"""

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
import torch.utils.data

from ._checks import as_choice, as_count, is_masked, is_number
from ._parts import Part, Tree
from ._state import check_format
from .core import Streamer
from .exceptions import ArgumentError, DataError, StateError
from .sharded import Sharded, check_ranks

__all__ = ["Dataset", "pinned", "to_arrays", "to_tensors"]

_SPLITS = ("seed", "streams")

#: The version of the format that states are written in.
_FORMAT = 1

# What a data set has room for: the ranks on one machine, and the workers of each.
_RANKS, _WORKERS = 32, 256

# No epoch is more; the one after it is counted too.
_MOST = (1 << 63) - 1

# The bits of a key, by which the workers of one pass know each other.
_KEY = (1 << 32) - 1

# ------------------------------------------------------------------------------------- tensors

# Types of ml_dtypes, which torch has under the same names, and the types that their bits are
# handed over as.
_BITS = {
    "bfloat16": np.int16,
    "float8_e4m3fn": np.uint8,
    "float8_e4m3fnuz": np.uint8,
    "float8_e5m2": np.uint8,
    "float8_e5m2fnuz": np.uint8,
    "float8_e8m0fnu": np.uint8,
}


class _Writable:
    """What NumPy makes a writable array of, over the memory of another."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.array = array


def _to_tensor(array: npt.NDArray[Any]) -> Any:
    """Return a tensor over the memory of an array; the array, if torch has no such type."""
    if is_masked(array):
        return array
    bits = _BITS.get(array.dtype.name)
    if bits is not None:
        return _to_tensor(array.view(bits)).view(getattr(torch, array.dtype.name))
    readable = array
    if not array.flags.writeable and array.dtype.kind in "biufc":
        # torch would warn. It has no tensors that are read-only.
        readable = np.asarray(_Writable(array))
    try:
        try:
            return torch.from_numpy(readable)
        except ValueError:
            # Its strides are negative or odd, or its bytes swapped.
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        return array


def to_tensors(item: Any) -> Any:
    """Turn the arrays of an item into tensors that share their memory.

    Parameters
    ----------
    item : object
        An array, or mappings, lists and tuples of them, nested as they may be.

    Returns
    -------
    item : object
        The same with tensors. Scalars of NumPy become tensors without axes. What torch has no type
        for (text, objects, times) stays as it is, and so do masked arrays.

    Notes
    -----
    An array is copied only if torch has no tensor of that kind: for negative strides, and where the
    bytes are in the order of another machine.

    Tensors are never read-only: one over the memory of a read-only array must not be written to.

    The types of ``ml_dtypes`` that torch has too, such as bfloat16, become torch's.

    Examples
    --------
    >>> to_tensors({"x": np.arange(2), "pair": (np.int64(3), "name")})
    {'x': tensor([0, 1]), 'pair': (tensor(3), 'name')}
    """
    kind = type(item)
    if kind is np.ndarray:
        if item.flags.writeable and item.dtype.isbuiltin == 1:
            try:
                return torch.from_numpy(item)
            except (TypeError, ValueError):
                pass
        return _to_tensor(item)
    if kind is dict:
        return {key: to_tensors(value) for key, value in item.items()}
    return _nested(item, to_tensors, _value_to_tensor)


def _value_to_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _to_tensor(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biufcV":
        tensor = _to_tensor(np.array(value))
        return tensor if isinstance(tensor, torch.Tensor) else value
    return value


def to_arrays(item: Any) -> Any:
    """Turn the tensors of an item into arrays that share their memory.

    Parameters
    ----------
    item : object
        A tensor on the CPU, or mappings, lists and tuples of them, nested as they may be.

    Returns
    -------
    item : object
        The same with arrays. Types that NumPy has not, such as bfloat16, become those of
        ``ml_dtypes``.

    Examples
    --------
    >>> to_arrays([torch.ones(2), None])
    [array([1., 1.], dtype=float32), None]
    """
    return _nested(item, to_arrays, _value_to_array)


def _value_to_array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().resolve_conj().resolve_neg()
    name = str(value.dtype).removeprefix("torch.")
    if name in _BITS:
        import ml_dtypes

        bits = torch.int16 if name == "bfloat16" else torch.uint8
        return value.view(bits).numpy().view(getattr(ml_dtypes, name))
    return value.numpy()


# What a state is saved as. `torch.load` refuses empty bytes and NumPy's arrays, unless it may load
# anything, and `pickle.load` tensors of unsigned numbers.


def _saved(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"__bytes__": _bytes_to_tensor(value)}
    if isinstance(value, np.generic):
        return {"__scalar__": _saved(np.asarray(value))}
    if not isinstance(value, np.ndarray):
        return _nested(value, _saved, _value_to_tensor)
    if value.dtype.kind == "u":
        return {"__unsigned__": torch.from_numpy(value.view(f"i{value.itemsize}"))}
    tensor = _to_tensor(value)
    if isinstance(tensor, torch.Tensor):
        return tensor
    # Text, times and records.
    if np.dtype(value.dtype.descr if value.dtype.names else value.dtype.str) != value.dtype:
        raise StateError(
            f"the state has an array of dtype {value.dtype}, which torch has no type for and NumPy "
            "no format"
        )
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {"__npy__": _bytes_to_tensor(file.getvalue())}


def _bytes_to_tensor(value: bytes) -> Any:
    return torch.from_numpy(np.array(bytearray(value), np.uint8))


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and len(value) == 1:
        ((kind, saved),) = value.items()
        if kind == "__bytes__":
            return saved.numpy().tobytes()
        if kind == "__scalar__":
            return _restored(saved)[()]
        if kind == "__unsigned__":
            signed = saved.numpy()
            return signed.view(f"u{signed.itemsize}")
        if kind == "__npy__":
            return np.load(io.BytesIO(saved.numpy().tobytes()), allow_pickle=False)
    return _nested(value, _restored, _value_to_array)


def _nested(item: Any, each: Callable[[Any], Any], convert: Callable[[Any], Any]) -> Any:
    """Return a mapping, list or tuple with `each` of its values; what is none, converted."""
    if isinstance(item, Mapping):
        return {key: each(value) for key, value in item.items()}
    if isinstance(item, list):
        return [each(value) for value in item]
    if isinstance(item, tuple):
        values = map(each, item)
        return type(item)(*values) if hasattr(item, "_fields") else tuple(values)
    return convert(item)


def pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Allocate an array in memory that copies to a GPU go straight from; for `buffer_stream`.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype

    Returns
    -------
    array : ndarray
        In ordinary memory where there is no CUDA, and in the workers of a ``DataLoader``.

    Examples
    --------
    >>> from pescador import buffer_stream
    >>> items = [{"x": np.zeros(2)}, {"x": np.ones(2)}]
    >>> for batch in buffer_stream(items, 2, allocator=pinned):
    ...     print(batch["x"].shape)
    (2, 2)
    """
    dtype = np.dtype(dtype)
    if torch.utils.data.get_worker_info() is not None or not torch.cuda.is_available():
        return np.empty(shape, dtype)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
    return cast(npt.NDArray[Any], memory.numpy().view(dtype).reshape(shape))


# ------------------------------------------------------------------------------------- epochs


class _Asked(NamedTuple):
    """What the workers of one pass have in common, from when their loader was asked for it."""

    #: By which they know each other.
    key: int
    #: After which number their pass is counted, and from which epoch.
    base: int
    first: int


class _Epochs:
    """Which epoch the next pass is of, where all copies of a data set see it.

    A loader starts its workers anew for each pass, or keeps them and the copies that they have.
    Those of one pass agree on its epoch, though any of them may begin late, or not at all: passes
    are numbered as they begin, and one that was asked for before an epoch was set is not counted
    after it.
    """

    def __init__(self, epoch: int) -> None:
        process = os.getpid()
        # Of each rank: the number that its passes follow since its epoch was set, that epoch, and
        # the process that has set it.
        self.base = torch.zeros(_RANKS, dtype=torch.int64).share_memory_()
        self.first = torch.full((_RANKS,), epoch, dtype=torch.int64).share_memory_()
        self.setter = torch.full((_RANKS,), process, dtype=torch.int64).share_memory_()
        # What was set last in this process. A worker has a copy of when it was started.
        self.own = [(0, epoch, process)] * _RANKS
        # Of each worker: which pass it has begun last. Above the bits of `_KEY`, the number of that
        # pass, from 1; in them, its key (see `Dataset.__iter__`). They change as one.
        self.begun = torch.zeros((_RANKS, _WORKERS), dtype=torch.int64).share_memory_()
        # Whether the last pass of a rank was made by workers.
        self.elsewhere = torch.zeros(_RANKS, dtype=torch.bool).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Other processes than the workers of a loader get a copy. Older ones had fewer fields.
        self.__init__(0)  # type: ignore[misc]
        self.__dict__.update(state)
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()

    def is_elsewhere(self, part: Part) -> bool:
        """Tell whether the last pass of a rank was made by workers."""
        return bool(self.elsewhere[part.rank % _RANKS])

    def set(self, part: Part, epoch: int) -> None:
        """Note the epoch of the next pass of a rank."""
        rank = part.rank % _RANKS
        if part.num_workers:
            # Each worker of a pass does so, before it begins.
            self.first[rank] = epoch
            self.begun[rank] = 0
            return
        # A pass that begins at this moment may take the next number.
        base = max(int(self.begun[rank].max()) // (_KEY + 1), int(self.base[rank])) + 2
        self.own[rank] = base, epoch, os.getpid()
        self.base[rank], self.first[rank], self.setter[rank] = self.own[rank]

    def restore(self, part: Part, epoch: int) -> None:
        """Note the epoch after that of the pass that this part goes on with."""
        self.elsewhere[part.rank % _RANKS] = part.num_workers > 0
        self.set(part, epoch)

    def _since(self, rank: int) -> tuple[int, int]:
        """Return after which number passes are counted now, and from which epoch."""
        return int(self.base[rank]), int(self.first[rank])

    def ask(self, part: Part, key: int, is_new: bool) -> _Asked:
        """Note that the loader of a worker was asked for a pass."""
        rank = part.rank % _RANKS
        since, (*own, process) = self._since(rank), self.own[rank]
        if is_new and own[0] != since[0] and process == int(self.setter[rank]):
            # The worker was started before its loader's process has set another epoch.
            since = own[0], own[1]
        return _Asked(key, *since)

    def _number(self, rank: int, worker: int, asked: _Asked) -> int:
        """Return the number of a pass."""
        low, high = (asked.base + 1) * (_KEY + 1), math.inf
        if asked.base < int(self.base[rank]):
            high = int(self.base[rank]) * (_KEY + 1)
        values: list[int] = self.begun[rank].tolist()
        begun = {i: divmod(n, _KEY + 1) for i, n in enumerate(values) if low <= n < high}
        number, key = begun.get(worker, (0, 0))
        if asked.key and key == asked.key:
            # The loader was given the seed of the pass before.
            return number + 1
        same = [number for number, key in begun.values() if asked.key and key == asked.key]
        return max(same) if same else max((n for n, _ in begun.values()), default=asked.base) + 1

    def of(self, part: Part, asked: _Asked | None = None) -> int:
        """Return the epoch of the next pass, or of one that workers were asked for."""
        rank = part.rank % _RANKS
        asked = asked or _Asked(0, *self._since(rank))
        return asked.first + self._number(rank, part.worker, asked) - asked.base - 1

    def begin(self, part: Part, asked: _Asked | None, epoch: int) -> None:
        """Note that a pass has begun: the next one is of another epoch, unless one was set."""
        rank = part.rank % _RANKS
        base, first = self._since(rank)
        self.elsewhere[rank] = part.num_workers > 0
        asked = asked or _Asked(0, base, first)
        number = self._number(rank, part.worker, asked)
        if asked.base == base and epoch == first + number - base - 1:
            self.begun[rank, part.worker] = number * (_KEY + 1) + asked.key


# ------------------------------------------------------------------------------------- data sets


class _Pass:
    """One pass of one part over a data set: begun, or where it is to begin.

    Its epoch is that of its state; without a state, which one it is shows when it begins.
    """

    def __init__(
        self, tree: Tree, part: Part, epochs: _Epochs, asked: _Asked | None, steps: int | None
    ) -> None:
        self.tree, self.part, self.epochs, self.asked = tree, part, epochs, asked
        # How many items the rank gives, and how many of them are this part's: its workers give one
        # each in turn.
        self.steps, n = steps, max(part.num_workers, 1)
        self.n_items = math.inf if steps is None else (steps - part.worker + n - 1) // n
        self.restored: int | None = None
        self.state: Any = None
        self.stream: Any = None

    @property
    def epoch(self) -> int:
        """Which epoch it is of."""
        if self.restored is not None:
            return self.restored
        return self.epochs.of(self.part, self.asked)

    def restore(self, epoch: int, state: Any) -> None:
        """Have it begin where another pass was."""
        self.restored, self.state = epoch, state

    def begin(self) -> Any:
        """Open the stream."""
        self.restored = self.tree.epoch = self.epoch
        stream = self.tree.top.open(state=self.state)
        self.epochs.begin(self.part, self.asked, self.restored)
        self.stream = stream
        return stream

    @property
    def has_ended(self) -> bool:
        """Whether there is no item after the last one."""
        if self.stream is None:
            return self.state is not None and bool(self.state["ended"])
        return bool(self.stream.has_ended or self.stream.index >= self.n_items)

    def ended_early(self) -> DataError:
        """Return the error of a stream that has ended before the pass."""
        if self.stream.index == 0:
            return DataError(
                f"{self.tree.top!r} has no item to give: it is empty, or it has ended and, as an "
                "iterator, cannot begin again"
            )
        # Those of all workers, up to the one that is missing.
        n = self.stream.index * max(self.part.num_workers, 1) + self.part.worker
        return DataError(
            f"{self.tree.top!r} has ended after {n} items, before the end of the epoch: "
            f"steps_per_epoch={self.steps!r} must be at most {n}"
        )

    def state_dict(self) -> dict[str, Any] | None:
        """Return where the stream is; None before its first item."""
        if self.stream is None:
            return cast(dict[str, Any] | None, self.state)
        return {**self.stream.state_dict(), "ended": self.has_ended}


class _Items(Iterator[Any]):
    """The items of a pass, as tensors."""

    def __init__(self, run: _Pass, transform: Callable[[Any], Any] | None) -> None:
        self.run, self.transform = run, transform
        self.stream: Any = None

    def __next__(self) -> Any:
        stream = self.stream
        if stream is None:
            if self.run.has_ended:
                raise StopIteration
            stream = self.stream = self.run.begin()
        if stream.index >= self.run.n_items:
            raise StopIteration
        try:
            item = next(stream)
        except StopIteration:
            if self.run.steps is None:
                raise
            raise self.run.ended_early() from None
        item = to_tensors(item)
        return item if self.transform is None else self.transform(item)

    def __del__(self) -> None:
        if self.stream is not None:
            self.stream.close()

    # A StatefulDataLoader saves and restores the iterator beside the data set. One that has ended
    # has to end once more: other workers may not have. A data set by itself begins the next pass.

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.run.epoch, "ended": self.run.has_ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["ended"]:
            self.run.restore(state["epoch"], {"ended": True})


class Dataset(torch.utils.data.IterableDataset):
    """A stream as a data set of torch: its items as tensors, its place in a state.

    Pass it to a ``DataLoader`` or ``StatefulDataLoader`` with ``batch_size=None`` if its items are
    batches, or iterate over it. Each process that trains (a *rank* of ``torch.distributed``), and
    each worker of its loader, gets a part of its own.

    Parameters
    ----------
    streamer : Streamer or iterable
        What it iterates over, by `Streamer.open`.
    transform : callable or None
        What is done to each item, once its arrays are tensors (see `to_tensors`).
    split : {'seed', 'streams'} or None
        What each part gets, where there are several.

        seed
            The whole tree under a seed of its own: as ``seeded.at(rank=rank * num_workers +
            worker)`` of the `Seeded` that it is under. If that is ``seeded.at(rank=k)`` already,
            its ranks begin at k times the number of parts.
        streams
            Every n-th stream of the pool of the mux at the root, and a seed as above if there
            is one.

        None is ``"streams"`` if that mux opens each stream once, or goes over its pool in turn;
        otherwise it is ``"seed"``. A `Sharded` at the root is divided by its shards: each rank
        gets ``sharded.at(rank, world_size)``, and its loader may have one worker.
    steps_per_epoch : int > 0 or None
        How many items a pass gives, in each rank: the workers of its loader share them. None leaves
        it to the stream, which may be endless.

    Raises
    ------
    ArgumentError
        If an argument is invalid. When a pass begins: if parts would give the same samples, as
        without a `Seeded` or beside a ``random_state``; or if there is no stream for a part.
    DataError
        When an item is asked for, if the stream has fewer than `steps_per_epoch`.

    See Also
    --------
    Streamer.open : what saves and restores the place.

    Notes
    -----
    **Epochs.** Each pass is one: it is ``seeded.at(epoch=...)``, one more than that of the pass
    before, or the one that `set_epoch` was given, in each worker too. Without a `Seeded` or
    `Sharded`, a tree draws by its own seeds.

    **Maps** that are applied to the mux at the root are looked through: a streamer of a function
    that is given one streamer, `buffer_stream` for example, and `Seeded`, `ParallelStreamer` and
    `ZMQStreamer`.

    **Each part ends by itself.** Streams are not of one length, and parts need not be either.
    Where ranks wait for each other, give all of them the same `steps_per_epoch`. It is the length
    of the data set, and may differ on resuming.

    Examples
    --------
    >>> import pescador
    >>> rows = pescador.sources.Rows({"x": np.arange(9)})
    >>> mux = pescador.ShuffledMux([rows, rows, rows, rows])
    >>> batches = pescador.Streamer(pescador.buffer_stream, mux, 4)
    >>> dataset = Dataset(pescador.Seeded(batches, 0))
    >>> items = iter(dataset)
    >>> next(items)
    {'x': tensor([6, 7, 6, 3])}
    >>> state = dataset.state_dict()
    >>> expected = next(items)
    >>> resumed = Dataset(pescador.Seeded(batches, 0))
    >>> resumed.load_state_dict(state)
    >>> torch.equal(next(iter(resumed))["x"], expected["x"])
    True

    A pass of two items:

    >>> short = Dataset(range(100), steps_per_epoch=2)
    >>> len(short), list(short)
    (2, [0, 1])
    """

    # Pickles of earlier versions lack it.
    steps_per_epoch: int | None = None

    def __init__(
        self,
        streamer: Iterable[Any],
        *,
        transform: Callable[[Any], Any] | None = None,
        split: str | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.streamer = streamer if isinstance(streamer, Streamer) else Streamer(streamer)
        if not (transform is None or callable(transform)):
            raise ArgumentError(f"transform={transform!r} must be None or a function of an item")
        self.transform = transform
        self.split = None if split is None else as_choice("split", split, _SPLITS)
        if steps_per_epoch is not None:
            steps_per_epoch = as_count("steps_per_epoch", steps_per_epoch, " or None")
        self.steps_per_epoch = steps_per_epoch
        tree = Tree(self.streamer)
        self._is_sharded = tree.sharded is not None
        self._epochs = _Epochs(tree.epoch)
        self._tree: tuple[Part, Tree] | None = None
        self._run: _Pass | None = None
        self._loaded: dict[str, Any] | None = None
        self._n_passes = 0
        self._ranks = (0, 1)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned is in no group of processes: it is told which rank it works for.
        return {**self.__dict__, "_tree": None, "_run": None, "_ranks": self._part()[:2]}

    def __len__(self) -> int:
        if self.steps_per_epoch is None:
            raise TypeError("a data set without steps_per_epoch has no length")
        return self.steps_per_epoch

    def __bool__(self) -> bool:
        # Not by its length, which it need not have.
        return True

    def _part(self) -> Part:
        """Return which part is asked for here."""
        worker = torch.utils.data.get_worker_info()
        ranks = (0, 1) if worker is None else self._ranks
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            ranks = distributed.get_rank(), distributed.get_world_size()
        if worker is None:
            return Part(*ranks, 0, 0)
        if worker.num_workers > _WORKERS:
            raise ArgumentError(f"num_workers={worker.num_workers} must be at most {_WORKERS}")
        return Part(*ranks, worker.id, worker.num_workers)

    def _tree_of(self, part: Part) -> Tree:
        """Return what a part iterates over; it is kept, and so are workers that it keeps."""
        if self._tree is None or self._tree[0] != part:
            tree = Tree(self.streamer)
            tree.split(self.split, part)
            self._tree = part, tree
        return self._tree[1]

    def __iter__(self) -> Iterator[Any]:
        part, worker = self._part(), torch.utils.data.get_worker_info()
        self._n_passes += 1
        asked = None
        if worker is not None:
            # What the workers of one pass have in common, and those of another have not: the seed
            # of the loader, and how many passes they have made with it.
            key = hash((worker.seed - worker.id, self._n_passes)) % _KEY + 1
            # One that is kept is asked while its loader waits.
            is_new = self._tree is None or self._tree[0] != part
            asked = self._epochs.ask(part, key, is_new)
        run = _Pass(self._tree_of(part), part, self._epochs, asked, self.steps_per_epoch)
        if self._loaded is not None:
            self._check_part(self._loaded, part)
            if not _has_ended(self._loaded):
                run.restore(self._loaded["epoch"], _restored(self._loaded["stream"]))
            self._loaded = None
        self._run = run
        return _Items(run, self.transform)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is, in this process and in the workers of its loader.

        Parameters
        ----------
        epoch : int >= 0

        Notes
        -----
        Workers begin at ``iter(loader)``: a pass that they have been asked for stays as it is, and
        does not count.
        """
        if not (is_number(epoch, int, np.integer) and 0 <= epoch < _MOST):
            raise ArgumentError(f"epoch={epoch!r} must be a whole number, 0 or more")
        self._epochs.set(self._part(), int(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return where the pass is that began last: as of the last item that it has given.

        Returns
        -------
        state : dict
            Numbers, strings, bytes, lists, tuples, dicts and tensors: ``torch.load`` reads it with
            ``weights_only=True``.

        Raises
        ------
        StateError
            If the stream cannot be restored exactly; or if the items were made by workers of a
            loader: it is a ``StatefulDataLoader`` that knows their states.
        """
        part, run = self._part(), self._run
        if self._loaded is not None:
            return self._loaded
        if part.num_workers == 0 and self._epochs.is_elsewhere(part):
            raise StateError(
                "the items of this data set were made by the workers of a DataLoader, which have "
                "states of their own: save that of torchdata's StatefulDataLoader"
            )
        return {
            "pescador.torch": _FORMAT,
            **part._asdict(),
            "epoch": self._epochs.of(part) if run is None else run.epoch,
            "stream": None if run is None else _saved(run.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have the next pass go on from where another data set of the same streamer was.

        A pass that had ended is followed by the next one.

        Parameters
        ----------
        state_dict : dict
            As `state_dict` has returned it.

        Raises
        ------
        StateError
            If the state is of another part: another rank or worker, or another number of them. Of
            a `Sharded`, any rank takes what `Sharded.merge` has made of the states of all. When the
            pass begins: if it is of another streamer.
        """
        check_format(state_dict, "pescador.torch", (_FORMAT,), "state_dict")
        numbers: list[Any] = [state_dict.get(name) for name in (*Part._fields, "epoch")]
        stream = state_dict.get("stream", "nothing")
        if not (
            all(is_number(number, int) and 0 <= number < _MOST for number in numbers)
            and (stream is None or (isinstance(stream, dict) and "ended" in stream))
        ):
            raise StateError(
                f"the state is damaged: it has the part and the epoch {numbers}, and of the "
                f"stream {stream!r:.100}"
            )
        part = self._part()
        self._check_part(state_dict, part)
        self._epochs.restore(part, state_dict["epoch"] + 1)
        self._run, self._loaded = None, state_dict

    def _check_part(self, state: dict[str, Any], part: Part) -> None:
        """Refuse the state of another part; all of a Sharded goes on from that of the whole."""
        saved = Part(*(state[name] for name in Part._fields))
        if saved == part or (self._is_sharded and saved == _WHOLE):
            return
        hint = "that of each is for it alone"
        if self._is_sharded:
            hint = "pescador.Sharded.merge(states of all ranks) makes one that all ranks take"
        raise StateError(f"the state is that of {saved}; this is {part}: {hint}")


# The part of one process without workers: all.
_WHOLE = Part(0, 1, 0, 0)


def merge_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of all ranks, of those of their data sets; see `Sharded.merge`."""
    if any(state.get("pescador.torch") != _FORMAT for state in states):
        raise ArgumentError(
            f"states={states!r:.100} must all be what state_dict() of data sets has returned, by "
            "this version"
        )
    check_ranks(states)
    unlike = {state["rank"]: state["epoch"] for state in states}
    if len(set(unlike.values())) > 1:
        raise StateError(f"the states of the ranks are of different epochs: {unlike}")
    streams = [_restored(state["stream"]) for state in states if state["stream"] is not None]
    behind = [state["rank"] for state in states if state["stream"] is None]
    if streams and behind:
        raise StateError(f"the states are not of one step: no pass has begun in the ranks {behind}")
    merged = _saved(Sharded.merge(streams)) if streams else None
    return {**states[0], **_WHOLE._asdict(), "stream": merged}


def _has_ended(state: dict[str, Any]) -> bool:
    """Tell whether a pass was saved after its last item."""
    return state["stream"] is not None and bool(state["stream"]["ended"])
