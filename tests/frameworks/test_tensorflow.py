"""Streams as data sets of TensorFlow; it has threads, and so is run by itself."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import pescador  # noqa: E402


def noise(i):
    while True:
        yield {"x": np.random.standard_normal(3), "i": np.int64(i)}


def run():
    mux = pescador.StochasticMux([pescador.Streamer(noise, i) for i in range(5)], 2, 4)
    return pescador.Seeded(pescador.Streamer(pescador.buffer_stream, mux, 4), 7)


SIGNATURE = {
    "x": tf.TensorSpec((None, 3), tf.float64),
    "i": tf.TensorSpec((None,), tf.int64),
}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda run: run,
        lambda run: pescador.ParallelStreamer(run, 1, start_method="spawn"),
        lambda run: pescador.ZMQStreamer(run, start_method="spawn"),
    ],
    ids=["here", "ParallelStreamer", "ZMQStreamer"],
)
def test_a_generator_data_set_gives_the_batches_of_a_streamer_at_each_pass(wrap):
    stream = wrap(run())
    data = tf.data.Dataset.from_generator(
        lambda: stream.iterate(6), output_signature=SIGNATURE
    ).prefetch(2)
    expected = [{key: value.copy() for key, value in batch.items()} for batch in run().iterate(6)]
    for _ in range(2):
        batches = list(data)
        assert len(batches) == 6
        for ours, theirs in zip(batches, expected, strict=True):
            assert all(np.array_equal(ours[key], theirs[key]) for key in SIGNATURE)


def test_batches_whose_memory_is_written_again_keep_their_values():
    mux = pescador.ShuffledMux([pescador.sources.Rows({"x": np.arange(300.0).reshape(100, 3)})])
    batches = pescador.Streamer(pescador.buffer_stream, mux, 4096, reuse=True)
    seeded = pescador.Seeded(batches, 0)
    data = tf.data.Dataset.from_generator(
        seeded.iterate, output_signature={"x": SIGNATURE["x"]}
    ).prefetch(3)
    expected = [batch["x"].copy() for batch in seeded.iterate(8)]
    for ours, theirs in zip(list(data.take(8)), expected, strict=True):
        assert np.array_equal(ours["x"], theirs)


def test_a_stream_that_is_let_go_is_closed():
    closed = []

    def samples():
        try:
            while True:
                yield {"x": np.zeros((1, 3)), "i": np.zeros(1, np.int64)}
        finally:
            closed.append(True)

    streamer = pescador.Streamer(samples)
    data = tf.data.Dataset.from_generator(streamer.iterate, output_signature=SIGNATURE)
    assert len(list(data.take(3))) == 3
    assert (streamer.active, closed) == (0, [True])
