"""Which visits can be made elsewhere, and how many items they will have."""

import contextlib
import functools
import io
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .. import _hooks, _visits
from .._schedule import has_pool, is_mux
from ..core import Streamer
from ..seeded import SPAWN, Seeded
from ..sources.source import Source
from .pool import Kind

_GENERATORS = (np.random.RandomState, np.random.Generator, np.random.BitGenerator)
# Types that hold nothing else, and those that are as long as they say.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, range, np.dtype, type})
_SIZED = frozenset({list, tuple, str, bytes, bytearray, range, np.ndarray})

# Streams that a description looks at.
_LOOKED_AT = 10_000

_SHARED_GENERATOR = "it draws from a random generator that others may share"


class Placement:
    """Tells which streamers of a tree have to run here.

    Parameters
    ----------
    kind : Kind
        Where visits run.
    governs : tuple of str
        The global states that are each visit's own.
    """

    def __init__(self, kind: Kind, governs: tuple[str, ...]) -> None:
        self.takes_turns = kind.shares_states and bool(governs)
        # Values in which nothing was found: many streamers are given the same.
        self.seen: dict[int, Any] = {}

    def stays(self, streamer: Any) -> str | None:
        """Return why the visits to a streamer have to run here; None where they need not."""
        if is_mux(streamer):
            # Its engine runs here, and its streams are asked for one by one.
            return "it is a mux" if has_pool(streamer) else "it has a function make its streams"
        if not issubclass(type(streamer), Streamer):
            return None
        n = len(self.seen)
        reason = _reason(streamer, self.seen)
        while reason is not None and len(self.seen) > n:
            # What was not looked at to its end.
            self.seen.popitem()
        return self._turns(streamer) if reason is None else reason

    def _turns(self, streamer: Any) -> str | None:
        """Return why a visit cannot run in a thread."""
        if not self.takes_turns or isinstance(streamer, Source):
            return None
        kwargs = streamer.kwargs if type(streamer) is Streamer else {}
        if any(value is SPAWN for value in kwargs.values()):
            return None
        return "it may draw from global random states, which all threads share"


def _reason(streamer: Any, seen: dict[int, Any]) -> str | None:
    """Return why a streamer cannot run apart from the others of its tree."""
    if not _hooks.is_stock(streamer):
        return "it overrides a hook of its class"
    if streamer.is_activated_copy:
        return "it is an activated copy"
    if hasattr(streamer, "start_method"):
        return "it has workers of its own"
    if hasattr(streamer, "server_key"):
        return "its items come from a server"
    fields = streamer.__dict__
    if "streamers" in fields:
        made_here = streamer.rng is np.random or streamer.rng is streamer.__pescador_rng__
        return None if made_here else _SHARED_GENERATOR
    if isinstance(streamer, Source):
        return _of_value(streamer.random_state, seen)
    for value in (streamer.streamer, streamer.args, streamer.kwargs):
        if (reason := _of_value(value, seen)) is not None:
            return reason
    return None


def _of_value(value: Any, seen: dict[int, Any]) -> str | None:
    """Return why what a stream starts from cannot be used by several visits at once."""
    kind = type(value)
    if kind in _PLAIN or id(value) in seen:
        return None
    # Kept: while it is there, nothing else has its id.
    seen[id(value)] = value
    # By the type: isinstance would ask the value for its __class__.
    if issubclass(kind, _GENERATORS):
        return _SHARED_GENERATOR
    if issubclass(kind, Iterator | io.IOBase):
        return "it reads from a generator object or an open file, which can be read once"
    if issubclass(kind, Streamer):
        if (reason := _reason(value, seen)) is not None:
            return reason
        return _of_value(value.__dict__.get("streamers"), seen)
    parts: Iterable[Any] = ()
    if kind is types.FunctionType:
        parts = _reached(value)
    elif kind is types.MethodType:
        parts = (value.__func__, value.__self__)
    elif kind is functools.partial:
        parts = (value.func, value.args, value.keywords)
    elif issubclass(kind, dict):
        parts = dict.values(value)
    elif issubclass(kind, list | tuple | set | frozenset):
        parts = () if _PLAIN.issuperset(map(type, value)) else value
    elif not issubclass(kind, type | types.ModuleType | np.ndarray):
        with contextlib.suppress(AttributeError):
            parts = object.__getattribute__(value, "__dict__").values()
    for part in parts:
        if (reason := _of_value(part, seen)) is not None:
            return reason
    return None


def _reached(function: types.FunctionType) -> Iterable[Any]:
    """Yield what a function can reach by names: random generators, iterators, functions."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    found = function.__globals__
    for name in _names(function.__code__):
        value = found.get(name)
        if isinstance(value, (*_GENERATORS, Iterator)):
            yield value
        elif type(value) is types.FunctionType and value.__globals__ is found:
            # Of the same module; others keep their random generators to themselves.
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names in a function, and in those that are written inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


class Pool:
    """A mux as a new process knows it, which runs visits to its streams and no engine.

    Attributes
    ----------
    streamers : list
        Those of which visits run there, and `Pool` or None in the place of others.
    """

    streamers: list[Any]


def without_those_that_stay(tree: Any, stays: Callable[[Any], str | None]) -> Any:
    """Return a copy of a tree without what its workers do not need, which may not be picklable."""
    pools: dict[int, Pool] = {}

    def needed(streamer: Any) -> Any:
        if stays(streamer) is None:
            return streamer
        stream = _visits.stream_of(streamer)
        streamers = getattr(stream, "streamers", None)
        if streamers is None or callable(streamers):
            return None
        # Once, also where it is in several pools.
        if id(stream) not in pools:
            pools[id(stream)] = pool = Pool()
            pool.streamers = [needed(each) for each in streamers]
        return pools[id(stream)]

    # Maps above the first mux run here.
    stream = _visits.stream_of(tree)
    return needed(stream if has_pool(stream) else tree)


def length_of(streamer: Any) -> int | None:
    """Return how many items each visit to a streamer has, where that is known without one."""
    source = streamer.__dict__.get("streamer")
    return len(source) if type(source) in _SIZED else None


def notes_on(tree: Any, workers: int | None, kind: Kind) -> Iterator[tuple[str, Any]]:
    """Yield what a description says of where streams run, and the first of those that run here.

    Where the number of workers is None, it is known when they begin.
    """
    governs: tuple[str, ...] = ("numpy", "random")
    if type(tree) is Seeded and _hooks.is_stock(tree):
        governs, tree = tree.states, tree.streamer
    if workers == 0:
        yield "all of it runs here: workers=0", None
        return
    placement = Placement(kind, governs)
    in_workers = f"{kind.worker}s" if workers is None else _count(workers, kind.worker)
    stream = _visits.stream_of(tree)
    if not has_pool(stream):
        reason = placement.stays(tree)
        where = f"in one {kind.worker}, as there is no mux" if reason is None else f"here: {reason}"
        yield f"all of it runs {where}", None
        return
    counts: dict[str | None, int] = {}
    first: dict[str | None, Any] = {}
    n = 0
    for n, each in enumerate(_streams_in(stream), 1):
        if n > _LOOKED_AT:
            break
        try:
            reason = placement.stays(each)
        except AttributeError:
            reason = "it is half built"
        counts[reason] = counts.get(reason, 0) + 1
        first.setdefault(reason, each)
    for reason in sorted(counts, key=lambda reason: reason is not None):
        of = _count(counts[reason], "stream") + (" runs" if counts[reason] == 1 else " run")
        if reason is None:
            yield f"{of} in {in_workers}", None
        else:
            why = reason if counts[reason] == 1 else reason.replace("it ", "each ", 1)
            yield f"{of} here: {why}", first[reason]
    if n > _LOOKED_AT:
        yield "the others were not looked at", None


def _streams_in(mux: Any) -> Iterator[Any]:
    """Yield the streams of a mux and of the muxes in it."""
    pools = [iter(mux.streamers)]
    while pools and len(pools) < _LOOKED_AT:
        for stream in pools[-1]:
            if has_pool(stream):
                pools.append(iter(stream.streamers))
                break
            yield stream
        else:
            pools.pop()


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"
