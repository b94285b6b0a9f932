"""The state of an open stream: what is saved of it, and how it is found to fit.

A state is made of numbers, strings, bytes, lists, tuples, dicts and NumPy arrays, so that
``pickle``, ``torch.save`` and ``copy.deepcopy`` take it. Each iterator in the tree of an open
stream saves its part (`save`), and beside it what kind of streamer it belongs to (its *recipe*).
"""

import contextlib
import copy
import hashlib
import operator
from collections.abc import Generator
from typing import Any

import numpy as np

from ._repr import cut
from ._visits import attributes_of, place_of, set_generator, state_of_generator
from .exceptions import ArgumentError, PescadorError, StateError

#: The version of the format that states are written in, and those that are read.
FORMAT = 2
FORMATS = (1, 2)

#: The largest number that compiled code counts to.
MOST = (1 << 63) - 1

_NAMED = 3  # streams that are named for each reason of a refusal; more are counted
_SHOWN = 80  # characters of a value in a message

_SCALARS = (type(None), bool, int, float, complex, str, bytes, np.bool_, np.number)


# What to do with the state of each of two kinds of streamer, where another one was opened.
_REMEDIES = {
    "a Seeded": "open pescador.Seeded(streamer, seed) with its seed",
    "a ParallelStreamer": "open pescador.ParallelStreamer(streamer, workers=0), which starts none",
}


def check_format(state: Any, key: str, formats: tuple[int, ...], name: str = "state") -> None:
    """Refuse what is no state, or has a format that is not read: its number is below `key`."""
    if not isinstance(state, dict) or key not in state:
        raise ArgumentError(f"{name}={state!r:.100} must be what state_dict() has returned")
    if state[key] not in formats:
        known = " and ".join(map(str, formats))
        raise StateError(
            f"the state has format {state[key]!r:.100}; this version of pescador reads {known}: "
            "take another state with it, or use the version that took this one"
        )


def _root(seed: Any, recipe: Any) -> str:
    """Return what a seed and the recipe at the root are of: one of those two, or its class."""
    if seed is not None:
        return "a Seeded"
    if isinstance(recipe, dict) and recipe.get("class") == "pescador.parallel.ParallelStreamer":
        return "a ParallelStreamer"
    return _part(recipe)


def _part(recipe: Any) -> str:
    """Return a part of a recipe in short: of muxes, their classes tell."""
    if isinstance(recipe, dict) and "entropy" in recipe:
        key = recipe.get("spawn_key")
        return cut(f"a Seeded with entropy={recipe['entropy']!r}, spawn_key={key!r}", _SHOWN)
    return cut(repr(recipe.get("class", recipe) if isinstance(recipe, dict) else recipe), _SHOWN)


def digest(array: Any) -> str:
    """Return a short name of the contents of an array."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=8).hexdigest()


def _kind(node: Any) -> str:
    """Return what kind of iterator a state is of."""
    return str(getattr(node, "kind", type(node).__name__))


class Saver:
    """What the iterators of an open stream tell while they save their state."""

    def __init__(self) -> None:
        # What cannot be restored exactly: its place and name, and why or what to do.
        self.refused: list[tuple[str, str]] = []
        # Whether anything draws from the global state of `np.random`.
        self.needs_global_state = False

    def save(self, node: Any) -> dict[str, Any]:
        """Return the state of one iterator, with its recipe."""
        state: dict[str, Any] = {"kind": _kind(node)}
        recipe = getattr(node, "recipe", None)
        if recipe is not None:
            state["recipe"] = recipe
        state.update(node.save(self))
        return state

    def save_visit(self, node: Any) -> list[Any]:
        """Return the number of the visit that an iterator is, and its state."""
        return [node.path[-1], self.save(node)]

    def refuse(self, name: str, reason: str) -> None:
        """Note that something cannot be restored exactly."""
        self.refused.append((name, reason))

    def refusals(self) -> str:
        """Return what was refused in words: each reason once, with some of its names."""
        names: dict[str, list[str]] = {}
        for name, reason in self.refused:
            names.setdefault(reason, []).append(name)
        return "; ".join(
            "; ".join(found[:_NAMED])
            + (f"; and {len(found) - _NAMED:,} more" if len(found) > _NAMED else "")
            + f": {reason}"
            for reason, found in names.items()
        )

    def uses_global_state(self) -> None:
        """Note that something draws from the global state of ``np.random``."""
        self.needs_global_state = True

    def plain(self, value: Any, name: str) -> Any:
        """Return a copy of a plain value; refuse others."""
        if isinstance(value, _SCALARS):
            return value
        if isinstance(value, np.random.RandomState | np.random.Generator):
            return {"__generator__": state_of_generator(value)}
        if type(value) in (np.ndarray, np.memmap) and not value.dtype.hasobject:
            return np.array(value, order="K")
        if type(value) in (list, tuple):
            return type(value)(self.plain(item, name) for item in value)
        if type(value) is dict:
            return {self.plain(key, name): self.plain(item, name) for key, item in value.items()}
        self.refuse(
            name,
            f"it is, or holds, an object of type {type(value).__qualname__}; a state is made of "
            "numbers, strings, bytes, lists, tuples, dicts and NumPy arrays",
        )
        return None

    def attributes(self, fields: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the attributes of a streamer with hooks, which may be part of its state."""
        return {key: self.plain(value, f"{name}, attribute {key}") for key, value in fields.items()}


class Loader:
    """What a state is restored with."""

    def __init__(self, strict: bool = True) -> None:
        # Whether weights must be the same, and no streams may have been added.
        self.strict = strict
        # Whether the state was taken although not all could be saved exactly.
        self.is_inexact = False

    def restore(self, node: Any, state: dict[str, Any]) -> None:
        """Have an iterator go on from where the state says."""
        recipe = getattr(node, "recipe", None)
        name = place_of(getattr(node, "path", ())) + "streamer"
        with self.refusing(name):
            if getattr(node, "is_elsewhere", False):
                # Whoever makes its items restores it.
                node.restore(state, self)
                return
            if "skip" in state:
                self.restore_and_skip(node, state, name)
                return
            if recipe is not None:
                self.compare(name, recipe, state["recipe"])
            self.compare(f"{name}, kind", _kind(node), state["kind"])
            node.restore(state, self)

    def restore_and_skip(self, node: Any, state: dict[str, Any], name: str) -> None:
        """Have a visit go on that was made elsewhere: from its last state, and some items later."""
        if state["from"] is not None:
            self.restore(node, state["from"])
        for i in range(self.whole(state, "skip", 0)):
            try:
                next(node)
            except StopIteration:
                raise self.error(
                    name,
                    f"it has given {state['skip']} items since its state was taken, and has "
                    f"only {i} now",
                ) from None

    @contextlib.contextmanager
    def refusing(self, name: str) -> Generator[None, None, None]:
        """Have what a damaged state leads to be an error that says so."""
        try:
            yield
        except PescadorError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self.error(
                name, f"it cannot go on from the state ({type(error).__name__}: {error})"
            ) from error

    def whole(self, state: dict[str, Any], field: str, least: int, most: int = MOST) -> int:
        """Return a whole number of a state, which compiled code is to trust."""
        value = operator.index(state[field])
        if not least <= value <= most:
            raise ValueError(f"{field!r} is {value} and must be from {least} to {most}")
        return value

    def numbers(
        self,
        state: dict[str, Any],
        field: str,
        shape: tuple[int, ...] | None,
        least: int = 0,
        most: int = MOST,
    ) -> Any:
        """Return an array of whole numbers of a state; None is any length."""
        values = np.asarray(state[field])
        shape = (len(values),) if shape is None else shape
        if (
            values.dtype != np.int64
            or values.shape != shape
            or (values.size and not least <= values.min() <= values.max() <= most)
        ):
            raise ValueError(
                f"{field!r} is {values!r:.200} and must be of shape {shape}, "
                f"of whole numbers from {least} to {most}"
            )
        return values

    def compare_roots(self, now: tuple[Any, Any], before: tuple[Any, Any]) -> None:
        """Refuse a state of another kind of streamer; both are told by seed and recipe."""
        here, there = _root(*now), _root(*before)
        if here != there and not _REMEDIES.keys().isdisjoint((here, there)):
            remedy = _REMEDIES.get(there, "open the streamer that it was taken of")
            raise StateError(
                f"the state does not fit: it was taken of {there}, and this is {here}: {remedy}"
            )
        self.compare("the seed of Seeded", now[0], before[0])

    def compare(self, what: str, now: Any, before: Any, hint: str = "") -> None:
        """Refuse a stream that is made otherwise than the one that was saved."""
        kinds = [isinstance(value, dict) and "class" in value for value in (now, before)]
        if isinstance(now, dict) and isinstance(before, dict) and kinds[0] == kinds[1]:
            for field in sorted(now.keys() | before.keys()):
                here, there = now.get(field), before.get(field)
                if field == "weights":
                    hint = " (strict=False lets them)"
                elif field == "n_streams" and here is not None and here >= (there or 0):
                    hint = " (strict=False lets streams be added at the end)"
                else:
                    hint = ""
                if self.strict or not hint:
                    self.compare(f"{what}, {field}", here, there, hint)
        elif now != before:
            differ = f"is {_part(now)}, and was {_part(before)} when the state was taken"
            if what.endswith(", weights"):
                differ = "differ"
            raise StateError(
                f"the state does not fit: {what} {differ}{hint}: "
                "open the streamer that it was taken of, or start without it"
            )

    def error(self, name: str, reason: str) -> StateError:
        """Return an error that names the stream which cannot be restored."""
        return StateError(f"{name}: {reason}")

    def own(self, value: Any) -> Any:
        """Return a copy that whoever gets it may write to."""
        return copy.deepcopy(value)

    def set_attributes(self, streamer: Any, fields: dict[str, Any]) -> None:
        """Have the attributes that hooks may change be as they were when the state was taken."""
        for name in attributes_of(streamer).keys() - fields.keys():
            delattr(streamer, name)
        for name, value in fields.items():
            if isinstance(value, dict) and "__generator__" in value:
                set_generator(getattr(streamer, name), value["__generator__"])
            else:
                setattr(streamer, name, copy.deepcopy(value))
