"""What a stream is, and how it is started.

A *stream* is whatever an iterator yields. A `Streamer` is the recipe for one: an iterable, or a
generator function with its arguments. It keeps four promises.

* It can be iterated any number of times. Each iteration *activates* the streamer: it works on a
  copy of the arguments, so that no two iterations see each other's writes, nor does the caller.
  What cannot change is shared instead; so is the memory of an array over bytes or over a file that
  was opened for reading, such as a ``np.memmap`` of mode ``r``, which stays read-only.
  (A generator object or an open file cannot be copied: it is shared and read once.)
* Nothing is started before the first ``next``.
* ``iterate``, ``cycle``, calling the streamer and ``iter`` give true Python generators.
* ``active`` counts the open iterations, and falls again when one ends, is closed or fails.

Subclasses may override ``iterate``, or ``_activate`` to set ``stream_`` on the activated copy.
"""

import copy
import copyreg
import functools
import inspect
import operator
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar, cast

from . import _core, _hooks, _isolation, _repr
from .exceptions import ArgumentError, PescadorError

if TYPE_CHECKING:
    from .stream import Stream

__all__ = ["Streamer", "streamable"]

T = TypeVar("T")
P = ParamSpec("P")

# What Python's own copies and pickles ask of a class.
_slot_names: Callable[[type], list[str]] = copyreg._slotnames  # type: ignore[attr-defined]


def _slots_of(streamer: Any) -> list[tuple[str, Any]]:
    """Return the attributes that a subclass keeps in slots, by name."""
    names = _slot_names(type(streamer))
    return [(name, getattr(streamer, name)) for name in names if hasattr(streamer, name)]


def as_fields(state: Any) -> dict[str, Any]:
    """Return what a pickle has as one dict: Python's own form has slots beside it, as a pair."""
    if isinstance(state, tuple):
        fields, in_slots = state
        return {**(fields or {}), **(in_slots or {})}
    return dict(state)


def _can_stream(source: Any) -> bool:
    """Whether a Streamer can be made from this: an iterable or a generator function."""
    # inspect recognises every generator function, but takes half as long as the rest of __init__.
    if type(source) is FunctionType and source.__code__.co_flags & inspect.CO_GENERATOR:
        return True
    return inspect.isgeneratorfunction(source) or isinstance(source, Iterable)


class _Wrapped:
    """Pickles as the ``__wrapped__`` of a function, which is pickled by its name."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.attrgetter("__wrapped__"), (self.wrapper,)


def by_name(source: Any) -> Any:
    """Return what to pickle for a source: if a decorator has taken its name, the way by that."""
    if type(source) is FunctionType:
        named: Any = sys.modules.get(source.__module__)
        for name in source.__qualname__.split("."):
            named = getattr(named, name, None)
        if named is not source and getattr(named, "__wrapped__", None) is source:
            return _Wrapped(named)
    return source


class Streamer(Generic[T]):
    """A restartable stream, made from an iterable or from a generator function.

    Parameters
    ----------
    streamer : iterable or generator function
        Where the items come from. A generator function is called anew by each iteration; an
        iterable is copied and iterated.
    *args, **kwargs
        Arguments for `streamer`, if it is callable. Each iteration passes copies of those that
        can change.

    Attributes
    ----------
    streamer, args, kwargs
        As passed.
    active_count_ : int
        The number of open iterations.
    stream_ : iterator or None
        On an activated copy, the iterator that it reads from; otherwise None.

    Raises
    ------
    ArgumentError
        If `streamer` is neither iterable nor a generator function.

    Examples
    --------
    >>> def count(n):
    ...     for i in range(n):
    ...         yield i
    >>> stream = Streamer(count, 5)
    >>> list(stream)
    [0, 1, 2, 3, 4]
    >>> list(stream(max_iter=3))
    [0, 1, 2]
    >>> list(stream.cycle(max_iter=7))
    [0, 1, 2, 3, 4, 0, 1]

    Iterables will do as well:

    >>> list(Streamer("abc"))
    ['a', 'b', 'c']
    """

    # Whether what an activated copy reads from is shared with other activations. Names with one
    # underscore are a subclass's own, but for the hooks.
    __pescador_shared__ = False
    # Attributes that copies and pickles lack, and those of which a deep copy has the same objects.
    __pescador_own__: frozenset[str] = frozenset()
    __pescador_same__: frozenset[str] = frozenset()

    def __init__(
        self, streamer: Iterable[T] | Callable[..., Iterable[T]], *args: Any, **kwargs: Any
    ) -> None:
        if not _can_stream(streamer):
            hint = ""
            if callable(streamer):
                hint = " (a function counts if it has a yield of its own)"
            raise ArgumentError(
                f"streamer={streamer!r} must be an iterable or a generator function{hint}"
            )
        self.streamer: Any = streamer
        self.args = args
        self.kwargs = kwargs
        self.active_count_ = 0
        self.stream_: Iterator[T] | None = None
        # Python makes the dict of an instance when it is first asked for. Made here, it lies near
        # the objects in it, and the start of a stream misses fewer caches in a large pool.
        self.__dict__  # noqa: B018

    def __copy__(self) -> Self:
        result = type(self).__new__(type(self))
        result.__dict__.update(self.__pescador_fields__())
        for name, value in _slots_of(self):
            object.__setattr__(result, name, value)
        return result

    def __deepcopy__(self, memo: dict[Any, Any]) -> Self:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        for name, value in self.__pescador_fields__().items():
            is_same = name in self.__pescador_same__
            result.__dict__[name] = value if is_same else _isolation.isolate(value, memo)
        for name, value in _slots_of(self):
            object.__setattr__(result, name, _isolation.isolate(value, memo))
        return result

    def __pescador_fields__(self) -> dict[str, Any]:
        return {k: value for k, value in self.__dict__.items() if k not in self.__pescador_own__}

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__pescador_fields__(), **dict(_slots_of(self))}
        if "streamer" in state:
            state["streamer"] = by_name(state["streamer"])
        return state

    def __setstate__(self, state: Any) -> None:
        state = as_fields(state)
        in_slots = set(_slot_names(type(self)))
        for name, value in state.items():
            if name in in_slots:
                object.__setattr__(self, name, value)
            else:
                # As pickle does it: compiled code finds names by identity.
                self.__dict__[sys.intern(name)] = value

    def __enter__(self, *args: Any, **kwargs: Any) -> Self:
        """Activate: return a copy that is ready to be read from.

        An activated copy returns itself, so that ``with`` may be nested.
        """
        if self.is_activated_copy:
            return self
        active = self.__pescador_copy__()
        self.active_count_ += 1
        return active

    def __pescador_copy__(self) -> Self:
        """Return an activated copy."""
        memo: dict[Any, Any] = {}
        active = copy.deepcopy(self, memo)
        if _isolation.is_shared(memo):
            active.__pescador_shared__ = True
        active._activate()
        return active

    def __exit__(
        self, *exc: type[BaseException] | BaseException | TracebackType | None
    ) -> Literal[False]:
        """Count one open iteration less."""
        if not self.is_activated_copy:
            if self.active_count_ <= 0:
                raise PescadorError(f"{self!r} left a context that it had not entered")
            self.active_count_ -= 1
        return False

    @property
    def active(self) -> int:
        """The number of open iterations of this streamer (0 if it is idle)."""
        return self.active_count_

    @property
    def is_activated_copy(self) -> bool:
        """Whether this is the copy that an iteration works on, rather than the original."""
        return self.stream_ is not None

    def _activate(self) -> None:
        """Set ``stream_`` to an iterator; called on the copy that an iteration works on."""
        if callable(self.streamer):
            self.stream_ = self.streamer(*self.args, **self.kwargs)
        else:
            self.stream_ = iter(self.streamer)

    def iterate(self, max_iter: float | None = None) -> Generator[T, None, None]:
        """Iterate over the stream once, to its end or for `max_iter` items.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to yield at most; a fraction counts as the next whole number.
            None goes on to the end of the stream.

        Yields
        ------
        item : object
            What the stream gives.

        Raises
        ------
        ArgumentError
            At the first ``next``, if `max_iter` is negative, NaN or not a number.

        See Also
        --------
        cycle : start again at the end of the stream.

        Notes
        -----
        A stream that is cut off by `max_iter` is asked for one item more, which is dropped. It
        shows only in sources that draw from a global random state or count their calls. Sources
        that iterations share (generator objects, open files) are not read past what was yielded.
        """
        items = _core.activated(self, max_iter)
        if items is not None:
            # As below, without the copy that nobody would see. `_core.Opened`, which counts other
            # iterations, would slow down streams of a few items.
            self.active_count_ += 1
            try:
                yield from items
            finally:
                # Whoever keeps an error keeps this frame, by way of its traceback.
                del items
                self.active_count_ -= 1
            return
        with self as active:
            yield from _core.Bounded(active.stream_, max_iter, not active.__pescador_shared__)

    def open(
        self,
        max_iter: float | None = None,
        *,
        state: dict[str, Any] | None = None,
        strict: bool = True,
    ) -> "Stream[T]":
        """Open the stream: an iteration that can be held, saved and restored.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to give at most, from now on. None goes on to the end; with a state, to
            where the stream that it was taken of would have ended.
        state : dict or None
            Where to go on, as ``Stream.state_dict()`` has returned it.
        strict : bool
            False lets weights differ and streams be added at the end of a pool.

        Returns
        -------
        stream : Stream
            An iterator over the items that `iterate` yields, and a context manager.

        Raises
        ------
        ArgumentError
            If `max_iter` is negative, NaN or not a number.
        PescadorError
            If this is an activated copy, or the state does not fit.

        Examples
        --------
        >>> streamer = Streamer(range(5))
        >>> with streamer.open() as stream:
        ...     next(stream), next(stream)
        ...     state = stream.state_dict()
        (0, 1)
        >>> list(streamer.open(state=state))
        [2, 3, 4]
        """
        from .stream import Stream

        stream: Stream[T] = Stream(self, max_iter)
        if state is not None:
            stream.load_state_dict(state, strict=strict)
        return stream

    def cycle(self, max_iter: float | None = None) -> Generator[T, None, None]:
        """Iterate over the stream again and again.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to yield at most, in all. None goes on for ever.

        Yields
        ------
        item : object
            What the stream gives.

        Raises
        ------
        PescadorError
            If 256 iterations in a row were empty.
        """
        yield from _core.Cycle(self, max_iter)

    def __call__(
        self, max_iter: float | None = None, cycle: bool = False
    ) -> Generator[T, None, None]:
        """Iterate over the stream, as `iterate` or, with ``cycle=True``, as `cycle`.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to yield at most.
        cycle : bool
            Whether to start again at the end of the stream.

        Yields
        ------
        item : object
            What the stream gives.
        """
        yield from self.cycle(max_iter=max_iter) if cycle else self.iterate(max_iter=max_iter)

    def __iter__(self) -> Generator[T, None, None]:
        return self.iterate()

    def __repr__(self) -> str:
        """One line, for messages; ``str``, consoles and notebooks show the tree of streamers."""
        return _repr.line(self)

    def __str__(self) -> str:
        return _repr.text(_repr.tree(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else str(self))

    def _repr_html_(self) -> str:
        return _repr.as_html(_repr.tree(self))


_hooks.register(Streamer, model=Streamer(()))
_repr.register(Streamer)


class Visited(Streamer[T]):
    """A streamer of ours, an iteration of which is a visit: an iterator that engines start as well.

    Parameters
    ----------
    streamer : Streamer or iterable
        What it is over.
    """

    def __init__(self, streamer: Any) -> None:
        super().__init__(streamer if isinstance(streamer, Streamer) else Streamer(streamer))

    def __pescador_visit__(self, scope: _core.Scope | None) -> Any:
        """Return one visit, which starts in a scope."""
        raise NotImplementedError

    def iterate(self, max_iter: float | None = None) -> Generator[T, None, None]:
        """Iterate over the stream once, to its end or for `max_iter` items.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to yield at most.

        Yields
        ------
        item : object
            What the stream gives.
        """
        scope = _core.around(self)
        visit = _core.note_started(scope, self, self.__pescador_visit__(scope).bounded(max_iter))
        try:
            with _core.Opened(self, visit) as items:
                yield from items
        finally:
            visit.close_streams()
            # Who keeps an error keeps this frame, and would keep the streams.
            del visit

    def _activate(self) -> None:
        self.stream_ = self.iterate()


def visit_of(streamer: Any, scope: _core.Scope | None) -> Any:
    """Return one visit to such a streamer, or None if the hooks of a subclass are to be called."""
    return streamer.__pescador_visit__(scope) if _hooks.is_stock(streamer) else None


def streamable(function: Callable[P, Iterable[T]]) -> Callable[P, Streamer[T]]:
    """Make a generator function return a `Streamer` over its results.

    Parameters
    ----------
    function : generator function
        Its arguments are checked against its signature when the streamer is made.

    Returns
    -------
    function
        With the name, signature and documentation of the original, which is its
        ``__wrapped__``.

    Examples
    --------
    >>> @streamable
    ... def count(n):
    ...     for i in range(n):
    ...         yield i
    >>> list(count(3))
    [0, 1, 2]
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Streamer[T]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return Streamer(function, *bound.args, **bound.kwargs)

    # wraps() is typed as if `make` returned what `function` does.
    return cast(Callable[P, Streamer[T]], make)
