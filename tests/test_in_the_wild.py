"""How public code uses pescador: each pattern works with no change."""

import copy
import inspect
import pickle

import joblib
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

import pescador
import pescador.maps
import pescador.util
import pescador.zmq_stream
from streams import data, forever, letters


def test_batches_of_a_mux_in_a_background_process_are_iterated_anew_every_epoch():
    mux = pescador.StochasticMux([pescador.Streamer(data, 10) for _ in range(4)], 2, 5)
    limited = pescador.Streamer(mux, max_iter=20)
    batches = pescador.Streamer(pescador.buffer_stream, limited, buffer_size=8, partial=True)
    stream = pescador.ZMQStreamer(batches)
    for _ in range(2):
        assert [len(batch["X"]) for batch in stream] == [8, 8, 4]


def test_buffer_stream_takes_a_plain_generator_by_keyword_and_by_position():
    by_keyword = pescador.buffer_stream(stream=data(6), buffer_size=3, partial=False, axis=None)
    by_position = pescador.buffer_stream(data(6), 3, False, None)
    for a, b in zip(by_keyword, by_position, strict=True):
        assert np.array_equal(a["X"], b["X"])


def test_a_streamer_of_a_streamer_bounds_it():
    inner = pescador.Streamer(forever, 1)
    assert list(pescador.Streamer(inner, max_iter=3)) == [1, 1, 1]
    assert list(pescador.Streamer(inner, 3)) == [1, 1, 1]


def test_max_iter_may_be_a_float_or_none_and_a_mux_may_be_called_bare():
    mux = pescador.ShuffledMux(letters("ab"))
    assert len(list(mux(max_iter=1e2))) == 100
    bare = mux()
    assert next(bare) in "ab"
    assert len(list(pescador.Streamer("abc")(max_iter=None))) == 3


def test_next_is_called_for_ever_through_iter():
    samples = iter(pescador.ShuffledMux(letters("ab")))
    assert len([next(samples) for _ in range(5000)]) == 5000


def test_background_muxes_are_mixed_by_a_mux():
    inner = [
        pescador.ZMQStreamer(
            pescador.StochasticMux([pescador.Streamer(data, 5)] * 3, 2, 4, random_state=i)
        )
        for i in range(2)
    ]
    mux = pescador.StochasticMux(inner, 2, 8, random_state=0)
    assert len(list(mux.iterate(30))) == 30


def test_muxes_take_positional_arguments_and_tell_their_number_of_streams():
    mux = pescador.StochasticMux(letters("abc"), 2, 8, mode="single_active", random_state=1)
    assert mux.n_streams == 3
    assert len(list(mux(max_iter=10))) == 10


ITEMS = [
    (np.zeros(2), 1),
    "text",
    {"features": {"x": np.zeros(2)}, "y": [1, {"z": 2}]},
    {"cqt/mag": np.zeros((1, 3)), "cqt/phase": np.ones((1, 3))},
    None,
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: type(item).__name__)
def test_muxes_pass_items_of_any_kind_on_untouched(item):
    streamer = pescador.Streamer([item])
    for mux in (pescador.ShuffledMux([streamer]), pescador.RoundRobinMux([streamer])):
        [sample] = mux.iterate(1)
        assert repr(sample) == repr(item)


def test_keys_with_slashes_go_through_maps_and_processes():
    item = ITEMS[3]
    stream = pescador.Streamer(pescador.buffer_stream, pescador.Streamer([item] * 4), 2, axis=0)
    for batch in pescador.ZMQStreamer(stream):
        assert batch["cqt/mag"].shape == (2, 3)
    assert next(pescador.tuples(stream, "cqt/phase"))[0].shape == (2, 3)


def test_streamable_works_on_a_local_closure():
    factor = 3

    @pescador.streamable
    def scaled(n):
        for i in range(n):
            yield {"x": np.array(factor * i)}

    assert [int(item["x"]) for item in pescador.ZMQStreamer(scaled(4))] == [0, 3, 6, 9]


def sum_of_a_closure(factor):
    @pescador.streamable
    def scaled(n):
        for i in range(n):
            yield {"x": np.array(factor * i)}

    mux = pescador.ShuffledMux([scaled(4), scaled(4)], random_state=0)
    return sum(int(batch["x"].sum()) for batch in pescador.buffer_stream(mux.iterate(8), 4))


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_streams_are_made_and_run_inside_the_workers_of_joblib(backend):
    jobs = [joblib.delayed(sum_of_a_closure)(factor) for factor in (1, 2, 3)]
    results = joblib.Parallel(n_jobs=2, backend=backend)(jobs)
    assert results == [sum_of_a_closure(factor) for factor in (1, 2, 3)]
    get_reusable_executor().shutdown(wait=True)


def labels(mux, n):
    return [int(item["Y"]) for item in mux.iterate(n)]


def test_streamers_travel_to_the_workers_of_joblib():
    mux = pescador.StochasticMux([pescador.Streamer(data, 9)] * 5, 2, 4, random_state=0)
    jobs = [joblib.delayed(labels)(mux, n) for n in (20, 30)]
    assert joblib.Parallel(n_jobs=2)(jobs) == [labels(mux, 20), labels(mux, 30)]
    get_reusable_executor().shutdown(wait=True)


class Dataset:
    """Holds a mux, and makes another one in __iter__."""

    def __init__(self):
        self.mux = pescador.ShuffledMux(letters("ab"), random_state=0)

    def __iter__(self):
        return iter(pescador.RoundRobinMux([self.mux, self.mux], "cycle"))


def test_a_mux_is_an_attribute_or_is_built_in_iter():
    dataset = copy.deepcopy(Dataset())
    samples = iter(dataset)
    assert {next(samples) for _ in range(50)} == {"a", "b"}
    pickled = pickle.loads(pickle.dumps(dataset))
    assert list(pickled.mux.iterate(20)) == list(dataset.mux.iterate(20))


def test_a_shallow_copy_gets_other_streamers():
    mux = pescador.ShuffledMux(letters("abc"), random_state=0)
    other = copy.copy(mux)
    other.streamers = letters("xyz")
    assert set(other.iterate(50)) == set("xyz")
    assert set(mux.iterate(50)) == set("abc")


def test_an_activated_mux_shows_its_arrays():
    mux = pescador.StochasticMux(letters("abc"), 2, 8, random_state=0)
    with mux as active:
        next(active.iterate())
        for name in ("stream_weights_", "stream_counts_", "stream_idxs_", "distribution_"):
            assert isinstance(getattr(active, name), np.ndarray)
        assert len(active.streams_) == 2
    assert pescador.ShuffledMux(letters("abc")).rng is np.random


def test_names_that_scripts_import_are_there():
    for module, names in {
        "zmq_stream": ["zmq_send_data", "zmq_recv_data", "zmq_worker"],
        "maps": ["__stack_data"],
        "util": ["get_rng", "batch_length"],
    }.items():
        for name in names:
            assert callable(getattr(getattr(pescador, module), name))
    stacked = getattr(pescador.maps, "__stack_data")([{"x": 1}, {"x": 2}], axis=None)
    assert stacked["x"].tolist() == [1, 2]


def test_cache_takes_a_streamer():
    assert len(list(pescador.cache(pescador.Streamer(data, 20), 5, random_state=0))) >= 20


def test_maps_are_generator_functions():
    for function in (pescador.buffer_stream, pescador.tuples, pescador.keras_tuples):
        assert inspect.isgeneratorfunction(function)


class LoadOnActivation(pescador.Streamer):
    """Overrides _activate, as public code does to open a file."""

    def _activate(self):
        self.opened = True
        super()._activate()


def test_subclasses_override_activate():
    streamer = LoadOnActivation("abc")
    with streamer as active:
        assert active.opened
    assert not hasattr(streamer, "opened")
    assert list(pescador.RoundRobinMux([streamer, streamer])) == list("aabbcc")
