"""Code as users write it; mypy --strict accepts it and infers what is meant."""

from collections.abc import Generator, Iterator
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import pescador

Sample = dict[str, npt.NDArray[np.float32]]


def windows(path: str, size: int = 4) -> Iterator[Sample]:
    """Give windows of a file."""
    for i in range(size):
        yield {path: np.full(size, i, np.float32)}


@pescador.streamable
def decorated(n: int) -> Iterator[int]:
    """Count."""
    yield from range(n)


letters = pescador.Streamer("abc")
assert_type(letters, pescador.Streamer[str])
for letter in letters:
    assert_type(letter, str)

streamer = pescador.Streamer(windows, "path", size=2)
assert_type(streamer, pescador.Streamer[Sample])
for sample in streamer.iterate(max_iter=1e2):
    assert_type(sample, Sample)
assert_type(streamer(cycle=True), Generator[Sample, None, None])

assert_type(decorated(3), pescador.Streamer[int])

mux = pescador.StochasticMux(
    [streamer, streamer], 2, rate=None, weights=[1, 2], mode="single_active", random_state=0
)
assert_type(mux, pescador.StochasticMux[Sample])
for sample in mux:
    assert_type(sample, Sample)


def pairs() -> Iterator[str]:
    """Give the streams of a chain."""
    yield from ("ab", "cd")


shuffled = pescador.ShuffledMux(["ab", "cd"], np.ones(2))
assert_type(shuffled, pescador.ShuffledMux[str])
assert_type(pescador.ChainMux(pairs, random_state=None), pescador.ChainMux[str])
assert_type(pescador.Mux([letters], 1), pescador.Mux[str])
nested: pescador.RoundRobinMux[Any] = pescador.RoundRobinMux([mux, shuffled], "cycle")

for batch in pescador.buffer_stream(mux, 8, partial=True, axis=0):
    assert_type(batch, dict[Any, Any])
for x, _y in pescador.keras_tuples(mux, inputs=["x"], outputs="y"):
    print(x)
for item in pescador.cache(letters, 5, random_state=np.random.default_rng(0)):
    assert_type(item, str)


def shard_of(shard: int) -> pescador.Streamer[Sample]:
    """Make the streamer of a shard."""
    return pescador.Streamer(windows, f"{shard}.npz")


sharded = pescador.Sharded(shard_of, 8, 0, on_end="stop", lengths=lambda shard: 4)
assert_type(sharded.at(1, 4, epoch=2), pescador.Sharded[Sample])
for sample in sharded.at(1, 4):
    assert_type(sample, Sample)

background = pescador.ZMQStreamer(mux, timeout=None)
assert_type(background, pescador.ZMQStreamer[Sample])
assert_type(pescador.Seeded(mux, 0), pescador.Seeded[Sample])
assert_type(pescador.ParallelStreamer(mux, 2), pescador.ParallelStreamer[Sample])
remote = pescador.RemoteStreamer("tcp://here:5555", insecure=True)
assert_type(remote, pescador.RemoteStreamer[Any])
windowed = pescador.sources.from_files("*.npz", pescador.sources.Windows, length=9)
assert_type(windowed, list[pescador.sources.Windows])
files = pescador.sources.from_files("*.npz", mmap=False)
assert_type(files, list[pescador.sources.Rows])
assert_type(next(iter(pescador.ShuffledMux(files))), dict[Any, npt.NDArray[Any]])
with background as active, mux as active_mux:
    print(active.is_activated_copy, active_mux.stream_weights_)


class Loud(pescador.Streamer[Sample]):
    """A subclass that overrides a hook."""

    def iterate(self, max_iter: float | None = None) -> Generator[Sample, None, None]:
        """Say when it starts."""
        print("starting")
        yield from super().iterate(max_iter)


def first(stream: pescador.Streamer[Sample]) -> Sample | None:
    """Show that one except clause catches what pescador raises."""
    try:
        return next(iter(stream))
    except pescador.PescadorError:
        return None
