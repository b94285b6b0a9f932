"""`Sharded`: one sequence of items for any number of ranks, which may change in the middle."""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self, SupportsIndex, TypeVar, overload

import numpy as np

from . import _core, _global_rng, _hooks, _mux
from ._checks import as_choice, as_count, as_whole, is_number
from .core import Streamer, Visited, by_name, visit_of
from .exceptions import ArgumentError, DataError, PescadorError, StateError
from .mux import ChainMux, RoundRobinMux
from .parallel import ParallelStreamer
from .parallel.placement import length_of
from .seeded import Seeded, sequence_of

__all__ = ["Sharded"]

T = TypeVar("T")

# ------------------------------------------------------------------------------------- a shard


class _Made:
    """What the parts of a `Sharded` share: what `make` has returned, and how long shards are."""

    def __init__(self, make: Callable[[int], Any], seed: Any, states: tuple[str, ...]) -> None:
        self.make, self.seed, self.states = make, seed, states
        self.streamers: dict[int, Streamer[Any]] = {}
        self.rounds: int | None = None

    def streamer(self, shard: int) -> Streamer[Any]:
        """Return what `make` returns; what it draws meanwhile follows from the seed, too."""
        if shard not in self.streamers:
            sequence = sequence_of(self.seed, shard)
            next(_global_rng.runs_under(sequence, lambda: self._note(shard), self.states))
        return self.streamers[shard]

    def _note(self, shard: int) -> None:
        # One thread at a time is here: another one may have made it.
        if shard in self.streamers:
            return
        streamer = self.make(shard)
        if not isinstance(streamer, Streamer) or streamer.is_activated_copy:
            raise ArgumentError(
                f"make({shard}) has returned {streamer!r}; it must return a Streamer: a mux, "
                "or pescador.Streamer(function, ...)"
            )
        self.streamers[shard] = streamer

    def __reduce__(self) -> tuple[Any, ...]:
        # Other processes make their own: these may hold what cannot be pickled.
        return _Made, (by_name(self.make), self.seed, self.states)


class Shard(Visited[T]):
    """One shard: what `make` returns for it, made when it is first opened, under its own seed."""

    def __init__(self, made: _Made, shard: int, epoch: int = 0) -> None:
        self.streamer = made.make
        self.args, self.kwargs = (shard,), {}
        self.active_count_ = 0
        self.stream_ = None
        self.__pescador_made__ = made
        self.epoch = epoch

    def seeded(self) -> Seeded[T]:
        """Return the streamer under its seed."""
        (shard,) = self.args
        made = self.__pescador_made__
        return Seeded(
            made.streamer(shard), made.seed, epoch=self.epoch, rank=shard, states=made.states
        )

    def __pescador_visit__(self, scope: _core.Scope | None) -> Any:
        return self.seeded().__pescador_visit__(scope)


_hooks.register(Shard, opener=visit_of)


class Shards(Sequence[Shard[T]]):
    """The shards of a part, each made when it is first asked for: there may be millions."""

    def __init__(self, made: _Made, numbers: range, epoch: int) -> None:
        self.made, self.numbers, self.epoch = made, numbers, epoch
        self.shards: dict[int, Shard[T]] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Shard[T]: ...
    @overload
    def __getitem__(self, place: slice) -> list[Shard[T]]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Shard[T] | list[Shard[T]]:
        """Return the shard at a place, or those of a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        number = self.numbers[place]
        if number not in self.shards:
            self.shards.setdefault(number, Shard(self.made, number, self.epoch))
        return self.shards[number]

    def __repr__(self) -> str:
        return f"<{len(self):,} shards>"


def _known_length(streamer: Any) -> int | None:
    """Return how many items a streamer gives, where that is known without opening it."""
    if not _hooks.is_stock(streamer):
        return None
    if isinstance(streamer, Seeded | ParallelStreamer):
        return _known_length(streamer.streamer)
    if isinstance(streamer, ChainMux | RoundRobinMux):
        if streamer.mode != "exhaustive" or callable(streamer.streamers):
            return None
        lengths = [_known_length(below) for below in streamer.streamers]
        return None if None in lengths else sum(length or 0 for length in lengths)
    return length_of(streamer)


# ------------------------------------------------------------------------------------- all of them


def steps_of(rank: int, world_size: int, step: int) -> int:
    """Return how many of the steps before `step` are those of a rank."""
    return -((rank - step) // world_size)


class Sharded(Visited[T]):
    """Streams for data-parallel training: one sequence of items, whatever the number of ranks.

    There are as many streams as `shards`, each under a seed of its own. The *global sequence* takes
    one item of each in turn, again and again: its step t comes from shard ``t % shards``. Of
    `world_size` processes that train, that of a `rank` is given the steps with ``t % world_size ==
    rank`` by ``sharded.at(rank, world_size)``. It opens no other shards than those.

    If each rank takes ``n // world_size`` items, these are the same n items for each `world_size`
    that divides n and `shards`. So training can go on with another one (`merge`), and its batches
    are those of a run in which nothing has changed.

    Parameters
    ----------
    make : function
        ``make(shard)`` returns the `Streamer` of a shard: a mux, for example, over every 64th file
        of a list. It is called once for each shard that is opened, when that is opened first. It
        has to return the same in every process. While it runs, the global states of ``np.random``
        and `random` are those of ``SeedSequence(seed, spawn_key=(shard,))``, as in a visit.
    shards : int > 0
        How many there are. Another number is another sequence: choose a multiple of each number of
        ranks that may be wanted.
    seed : int or SeedSequence
        Shard c gives in epoch e what ``Seeded(make(c), seed, epoch=e, rank=c)`` gives.
    epoch : int >= 0
        Another one is independent; see `at`.
    on_end : {'error', 'stop'}
        error
            A shard that ends is an error: each is to go on for ever.
        stop
            All ranks stop after as many rounds as the shortest shard has items; a round is one item
            of each shard. Ranks do not ask each other: `lengths` tells each of them.
    lengths : int, sequence of int, function or None
        With ``on_end="stop"``, how many items the shards have: the shortest, each, or
        ``lengths(shard)``. None takes it from what `make` returns for each shard, which is known of
        streamers over lists, arrays and the like, and of a `ChainMux` or `RoundRobinMux` of them.
    states : tuple of str
        Which global states each shard has for itself; see `Seeded`.

    Attributes
    ----------
    rank, world_size : int
        Which part of the sequence this is: 0 and 1, the whole, until `at` has said another.
    streamers : sequence of Streamer
        The shards of this part.

    Raises
    ------
    ArgumentError
        If an argument is invalid. While iterating: if `make` returns no `Streamer`, or if it is not
        known how long a shard is.
    DataError
        While iterating, if a shard ends that is to go on. It names the shard and the step.

    See Also
    --------
    Seeded : one seed for a tree.
    pescador.torch.Dataset : takes the rank from ``torch.distributed``.

    Notes
    -----
    Batches are made of the items of a rank: ``Streamer(buffer_stream, sharded.at(rank,
    world_size), 256 // world_size)`` for batches of 256 items in all. What draws or keeps items, as
    `cache` does, belongs in what `make` returns: above, it would see other items with another
    number of ranks.

    Examples
    --------
    >>> import pescador
    >>> def noise(shard):
    ...     while True:
    ...         yield shard, np.random.randint(100)
    >>> sharded = Sharded(lambda shard: Streamer(noise, shard), 4)
    >>> whole = list(sharded(max_iter=8))
    >>> whole
    [(0, 1), (1, 85), (2, 50), (3, 69), (0, 83), (1, 80), (2, 11), (3, 4)]
    >>> list(sharded.at(1, 2)(max_iter=4)) == whole[1::2]
    True

    Two ranks, and after four items of each of them there is only one:

    >>> streams = [sharded.at(rank, 2).open() for rank in range(2)]
    >>> given = [next(stream) for _ in range(4) for stream in streams]
    >>> given == whole
    True
    >>> state = Sharded.merge([stream.state_dict() for stream in streams])
    >>> expected = list(sharded(max_iter=12))[8:]
    >>> list(sharded.open(4, state=state)) == expected
    True
    """

    # None of these can be assigned: the shards of a part follow from them.
    make: Callable[[int], Streamer[T]]
    shards: int
    seed: Any
    epoch: int
    on_end: str
    lengths: Any
    states: tuple[str, ...]
    rank: int
    world_size: int
    streamers: Shards[T]

    # What a description shows besides the arguments.
    __pescador_shown__: ClassVar = {"rank": 0, "world_size": 1}

    def __init__(
        self,
        make: Callable[[int], Streamer[T]],
        shards: int = 64,
        seed: int | np.integer[Any] | np.random.SeedSequence = 0,
        *,
        epoch: int = 0,
        on_end: str = "error",
        lengths: int | Sequence[int] | Callable[[int], int] | None = None,
        states: Iterable[str] = ("numpy", "random"),
    ) -> None:
        if not callable(make):
            raise ArgumentError(f"make={make!r} must be a function of the number of a shard")
        seeded: Seeded[Any] = Seeded((), seed, epoch=epoch, states=states)
        shards = as_count("shards", shards)
        as_choice("on_end", on_end, ("error", "stop"))
        if lengths is not None and on_end == "error":
            raise ArgumentError(f"lengths={lengths!r} is for on_end='stop'")
        if is_number(lengths):
            lengths = as_count("lengths", lengths)
        elif isinstance(lengths, Sequence | np.ndarray):
            has_no_length = isinstance(lengths, np.ndarray) and lengths.ndim == 0
            if has_no_length or len(lengths) != shards:
                raise ArgumentError(
                    f"lengths={lengths!r:.100} must have a number for each of the {shards} shards"
                )
            lengths = [as_whole(f"lengths[{i}]", n) for i, n in enumerate(lengths)]
        elif not (lengths is None or callable(lengths)):
            raise ArgumentError(
                f"lengths={lengths!r:.100} must be None, a whole number, one for each shard, or a "
                "function of a shard"
            )
        self.active_count_ = 0
        self.stream_ = None
        self.__pescador_made__ = _Made(make, seeded.seed, seeded.states)
        self.__pescador_set__(
            make=make,
            shards=shards,
            seed=seeded.seed,
            epoch=seeded.epoch,
            on_end=on_end,
            lengths=lengths,
            states=seeded.states,
            rank=0,
            world_size=1,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Sharded.__annotations__:
            raise AttributeError(
                f"{name} cannot be assigned: make another Sharded, or another part with at()"
            )
        super().__setattr__(name, value)

    def __pescador_set__(self, **fields: Any) -> None:
        """Have other attributes, and the shards that follow from them."""
        self.__dict__.update(fields)
        numbers = range(self.rank, self.shards, self.world_size)
        self.__dict__["streamers"] = Shards(self.__pescador_made__, numbers, self.epoch)

    def at(
        self, rank: int | None = None, world_size: int | None = None, *, epoch: int | None = None
    ) -> Self:
        """Return the part of one rank, or another epoch of this one.

        Parameters
        ----------
        rank : int >= 0 or None
            Below `world_size`. None leaves each of these as it is.
        world_size : int > 0 or None
            How many ranks there are: a divisor of `shards`.
        epoch : int >= 0 or None

        Returns
        -------
        part : Sharded
            The items of the shards with ``shard % world_size == rank``, in turn.
        """
        world_size = self.world_size if world_size is None else as_count("world_size", world_size)
        rank = self.rank if rank is None else as_whole("rank", rank)
        if self.shards % world_size:
            raise ArgumentError(
                f"world_size={world_size} does not divide shards={self.shards}: ranks would have "
                "different numbers of shards"
            )
        if rank >= world_size:
            raise ArgumentError(f"rank={rank!r} must be below world_size={world_size}")
        epoch = self.epoch if epoch is None else as_whole("epoch", epoch)
        result = copy.copy(self)
        result.active_count_ = 0
        result.__pescador_set__(rank=rank, world_size=world_size, epoch=epoch)
        return result

    @staticmethod
    def merge(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Merge the states of all ranks into one, which any number of ranks can go on from.

        Parameters
        ----------
        states : iterable of dict
            What ``state_dict()`` of the streams of all ranks has returned, in any order, at one
            step of the global sequence: of parts, of maps over them such as batches, or of data
            sets of `pescador.torch`.

        Returns
        -------
        state : dict
            Of a part, it is the state that the whole sequence would have, ``sharded.at(0, 1)``.
            ``sharded.at(rank, world_size).open(state=state)`` takes it for each rank, with a map
            over it where there was one; it opens only its own shards.

        Raises
        ------
        ArgumentError
            If these are not such states.
        StateError
            If a rank is missing, or there twice; if the ranks are not at one step; or if something
            else differs, such as the epoch.

        Notes
        -----
        If the states have a bound (``open(max_iter=...)``), the parts end together where they would
        have ended. Batches and other maps over parts have as many items left as each rank had.
        """
        found = list(states) if isinstance(states, Iterable) else []
        if not found or not all(isinstance(state, dict) for state in found):
            raise ArgumentError(f"states={states!r:.100} must be states of all ranks, one of each")
        try:
            if any("pescador.torch" in state for state in found):
                from .torch import merge_states

                return merge_states(found)
            return _merge(found)
        except PescadorError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StateError(
                f"the states cannot be merged, as one is damaged ({type(error).__name__}: {error})"
            ) from error

    # Each iteration has copies of what the streamers of shards hold.
    __pescador_same__ = frozenset({"make", "streamers", "__pescador_made__"})

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("streamers", "__pescador_made__", "__pescador_around__")
        state = {name: v for name, v in super().__getstate__().items() if name not in left_out}
        return {**state, "make": by_name(state["make"])}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.__pescador_made__ = _Made(self.make, self.seed, self.states)
        self.__pescador_set__()

    def __pescador_visit__(self, scope: _core.Scope | None) -> _mux.ShardedEngine:
        here = _core.Scope(scope, None, [], {})
        return _mux.ShardedEngine(self, here, len(self.streamers), self.__pescador_rounds__())

    # What an engine and its states ask for.

    __pescador_has_engine__ = True
    # It draws nothing.
    rng = np.random
    __pescador_rng__ = None

    def __pescador_rounds__(self) -> int | None:
        """Return how many items each shard gives; None has them go on for ever."""
        if self.on_end == "error":
            return None
        made = self.__pescador_made__
        if made.rounds is None:
            lengths = self.lengths
            made.rounds = (
                lengths
                if isinstance(lengths, int)
                # No generator: StopIteration of a function would end it, and leave shards out.
                else min([self._length(shard) for shard in range(self.shards)])
            )
        return made.rounds

    def _length(self, shard: int) -> int:
        if self.lengths is not None:
            told = self.lengths(shard) if callable(self.lengths) else self.lengths[shard]
            return as_whole(f"lengths of shard {shard}", told)
        streamer = self.__pescador_made__.streamer(shard)
        length = _known_length(streamer)
        if length is None:
            raise ArgumentError(
                f"on_end='stop': nobody knows how many items shard {shard} has, {streamer!r}, and "
                "ranks cannot stop together where they find its end: pass lengths"
            )
        return length

    def __pescador_ended__(self, given: int) -> DataError:
        """Return the error of the next shard, which has ended after so many items of this part."""
        step = given * self.world_size + self.rank
        n, shard = divmod(step, self.shards)
        why = "pass on_end='stop', or have it go on for ever, as a mux with replacement does"
        if self.on_end == "stop":
            why = f"it was to have {self.__pescador_rounds__()} at least, by `lengths`"
        return DataError(
            f"shard {shard} has ended at step {step} of the global sequence, after {n} items: {why}"
        )

    def __pescador_recipe__(self) -> dict[str, Any]:
        sequence = sequence_of(self.seed)
        return {
            "class": f"{Sharded.__module__}.Sharded",
            "shards": self.shards,
            "entropy": sequence.entropy,
            "spawn_key": tuple(sequence.spawn_key),
            "epoch": self.epoch,
            "states": self.states,
            "rounds": self.__pescador_rounds__(),
        }

    def __pescador_place__(self, state: dict[str, Any], loader: Any) -> tuple[int, int]:
        """Return how many items this part has left, and has given, by a state of it or of all."""
        left, given = (loader.whole(state, name, 0) for name in ("left", "given"))
        rank, world_size = state["rank"], state["world_size"]
        if (rank, world_size) == (self.rank, self.world_size):
            return left, given
        if (rank, world_size) != (0, 1):
            raise StateError(
                f"the state is that of rank {rank} of {world_size}, and this is rank {self.rank} "
                f"of {self.world_size}: pescador.Sharded.merge(states of all {world_size} ranks) "
                "makes one that any number of ranks can go on from"
            )
        mine = steps_of(self.rank, self.world_size, given)
        if left < _BOUNDED:
            return steps_of(self.rank, self.world_size, given + left) - mine, mine
        return _UNBOUNDED, mine


_hooks.register(Sharded, opener=visit_of)

# ------------------------------------------------------------------------------------- merging

# Of what has no bound, so many items are left as compiled code counts to, less those given.
_UNBOUNDED = _core.as_bound(None)
_BOUNDED = _UNBOUNDED // 2


# What to do about what stands between a stream and a part, by the kind of its state.
_REMEDIES = {
    "Leaf": "of other code it is known how many items it gave, not how many it took: {}",
    "Remote": "its workers run other code over the part: {}",
    **dict.fromkeys(
        ("RemoteStream", "RemoteVisit"),
        "its items come from a process that is ahead: have a pescador.ParallelStreamer run the "
        "part, or let `make` return such a streamer of one shard",
    ),
}
_IN_MAKE = "pass what is done to an item to pescador.transform, or do it in `make`"
_MUX = "a mux of parts gives other items for each number of ranks: let `make` return the mux"


def _way_to_part(state: dict[str, Any]) -> list[str]:
    """Return the keys that lead to the state of a part, through those of maps over it."""
    way, node = ["tree"], state.get("tree")
    while isinstance(node, dict) and node.get("kind") != "ShardedEngine":
        key = "map" if "map" in node else "stream"
        if key not in node:
            raise ArgumentError(_no_part(node))
        way.append(key)
        node = node[key]
    if not isinstance(node, dict):
        raise ArgumentError(_no_part({}))
    return way


def _no_part(node: dict[str, Any]) -> str:
    """Return what to say of a state that no way leads from to that of a part."""
    kind, recipe = str(node.get("kind")), node.get("recipe")
    what = recipe.get("class") if isinstance(recipe, dict) else recipe
    remedy = _REMEDIES.get(kind, _MUX if kind.endswith("Engine") else None)
    if remedy is None:
        return (
            "these are no states of parts of a Sharded: pass what state_dict() has returned of "
            "each rank's stream"
        )
    found = "" if what is None else f" (found {what!s:.100})"
    return (
        "these are no states of parts of a Sharded, or of maps of pescador or a ParallelStreamer "
        f"over one{found}: {remedy.format(_IN_MAKE)}"
    )


def _at(state: Any, way: list[str]) -> Any:
    for key in way:
        state = state[key]
    return state


def _replaced(state: dict[str, Any], way: list[str], value: Any) -> dict[str, Any]:
    """Return a copy of a state with another value at the end of a way."""
    first, *rest = way
    return {**state, first: _replaced(state[first], rest, value) if rest else value}


def _difference(one: Any, other: Any, name: str = "") -> str | None:
    """Return the name of the first value that differs in two states; None where none does."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(str(key), one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        pairs = [(str(i), one[i], other[i]) for i in range(len(one))]
    else:
        same = type(one) is type(other) and bool(np.all(one == other))
        return None if same else name
    for key, here, there in pairs:
        # What a ParallelStreamer has drawn for itself: shards have their own seeds.
        if key != "words":
            found = _difference(here, there, f"{name}, {key}" if name else key)
            if found is not None:
                return found
    return None


def check_ranks(parts: list[dict[str, Any]]) -> None:
    """Refuse states that are not those of all ranks, once each."""
    sizes = sorted({part["world_size"] for part in parts})
    if len(sizes) > 1:
        raise StateError(f"the states are those of different numbers of ranks: {sizes}")
    ranks = [part["rank"] for part in parts]
    absent = (rank for rank in range(sizes[0]) if rank not in ranks)
    # A damaged state may tell of any number of ranks.
    missing = list(itertools.islice(absent, 100))
    if missing:
        raise StateError(f"of {sizes[0]} ranks, the states of these are missing: {missing}")
    if len(ranks) > sizes[0]:
        raise StateError(f"a rank is there twice: the states are those of {sorted(ranks)}")


def _check_step(states: list[dict[str, Any]], parts: list[dict[str, Any]], step: int) -> None:
    """Refuse states that are not of one step of the global sequence."""
    n = len(parts)
    if all(part["given"] == steps_of(rank, n, step) for rank, part in enumerate(parts)):
        return
    most = max(part["given"] for part in parts)
    behind = {rank: part["given"] for rank, part in enumerate(parts) if part["given"] < most}
    lag = ", ".join(f"rank {rank} has given {given}" for rank, given in behind.items())
    remedy = "take the states of all ranks after the same number of items of each"
    if len({state["index"] for state in states}) == 1:
        # Maps above have given as many items, of more or fewer.
        ended = [rank for rank, state in enumerate(states) if state["ended"]]
        remedy = (
            f"the ranks {ended} have found that there is no other batch: take the states before, "
            "or when all of them have"
            if ended
            else "a map above drops or repeats items, as a transform that returns pescador.SKIP "
            "or a cache: it belongs in what `make` returns"
        )
    raise StateError(
        f"the states are not of one step: {lag}, and others {most} items of their shards: {remedy}"
    )


def _merge(states: list[dict[str, Any]]) -> dict[str, Any]:
    ways = [_way_to_part(state) for state in states]
    found = [_at(state, way) for state, way in zip(states, ways, strict=True)]
    check_ranks(found)
    if any(way != ways[0] for way in ways):
        raise StateError(
            "the states are of different streamers: that of one rank has other maps above its part "
            "than that of another"
        )
    order = sorted(range(len(states)), key=lambda i: int(found[i]["rank"]))
    states, parts, way = [states[i] for i in order], [found[i] for i in order], ways[0]
    step = sum(part["given"] for part in parts)
    _check_step(states, parts, step)
    left = sum(part["left"] for part in parts)
    whole = {
        **parts[0],
        "rank": 0,
        "world_size": 1,
        "given": step,
        "left": left if left < _BOUNDED else _UNBOUNDED - step,
        "shards": sorted(
            (shard for part in parts for shard in part["shards"]), key=lambda shard: int(shard[0])
        ),
    }
    if "map" not in way:
        states = [{**state, "index": step} for state in states]
    # One rank may have found that there is no other item, and others not have asked.
    ended = all(state["ended"] for state in states)
    # All else is the same: as the recipe of the shards, and how many batches there were.
    others = [
        {**_replaced(state, way, part["recipe"]), "inexact": None, "ended": ended}
        for state, part in zip(states, parts, strict=True)
    ]
    for rank, other in enumerate(others):
        differs = _difference(other, others[0])
        if differs is not None:
            raise StateError(
                f"the states of the ranks 0 and {rank} differ beside their shards: {differs}: "
                "take them of one run, at one epoch; what draws or keeps items, as cache does, "
                "belongs in what `make` returns"
            )
    inexact = sorted({reason for state in states for reason in state["inexact"]})
    return {**_replaced(states[0], way, whole), "inexact": inexact, "ended": ended}
