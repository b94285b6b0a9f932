"""Loops over empty streams: which of them raise or warn, and what they say.

A cycle, and a mux that starts its streams again, go on until they have a sample. If every stream
that can still come is empty, that is for ever. A single empty pass does not show it: a stream may
be empty by chance, such as one that rejects most of what it reads.
"""

import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from .exceptions import PescadorError, PescadorWarning

#: Passes in a row without a sample, after which a loop raises. For n streams, n visits are a pass.
PASSES = 256
#: Visits in a row without a sample, after which a mux warns.
VISITS = 1_000_000


def empty_loop(loop: Any, streamers: Iterable[Any], instead: str) -> PescadorError:
    """Return the error of a loop whose streamers gave nothing; `instead` names one that ends."""
    streamers = list(streamers)
    names = ", ".join(map(repr, itertools.islice(streamers, 3))) or "an empty pool"
    if len(streamers) > 3:
        names += f" and {len(streamers) - 3:,} more"
    return PescadorError(
        f"{loop} would go on for ever: {PASSES} times in a row, {names} gave nothing; "
        f"{instead} ends instead"
    )


def end_pass(mux: Any, streamers: Iterable[Any], gave: bool) -> None:
    """Count the passes in a row that gave nothing, for a mux that runs by its hooks."""
    passes = 0 if gave else mux.__dict__.get("__pescador_passes__", 0) + 1
    mux.__pescador_passes__ = passes
    if passes == PASSES:
        raise empty_mux(mux, streamers) from None


def empty_mux(mux: Any, streamers: Iterable[Any]) -> PescadorError:
    """Return the error of a mux that starts its streams again and again, and all are empty."""
    return empty_loop(repr(mux), streamers, "mode='exhaustive'")


def check_visits(
    mux: Any, active: Any, streamers: Sequence[Any], visits: int, found: set[int], warned: bool
) -> bool:
    """Raise if no stream of a StochasticMux can still give a sample; warn if that takes long.

    `active` is its engine, or its activated copy; in the last `visits`, the streams in `found`
    were empty. Return whether it has warned.
    """
    slots = [
        (float(weight), int(i))
        for i, weight, stream in zip(
            active.stream_idxs_, active.stream_weights_, active.streams_, strict=True
        )
        if stream is not None
    ]
    # A stream of weight 0 keeps its slot for good.
    stuck = {i for weight, i in slots if weight == 0}
    if len(found | stuck) == len(streamers) and not active.stream_counts_.any():
        raise empty_mux(mux, streamers) from None
    if visits >= VISITS and not warned:
        weight, i = max(slot for slot in slots if slot[1] in found)
        warnings.warn(
            f"{mux!r} has tried {visits:,} times in a row without a sample: "
            f"streamers[{i}]={streamers[i]!r} is empty and has a weight of {weight:.6g}; "
            "it goes on, but would be faster without that stream, or with less weight on it",
            PescadorWarning,
            stacklevel=2,
        )
        warned = True
    return warned
