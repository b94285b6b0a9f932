"""What a streamer says of itself: a line for messages, a tree for people, short in any case."""

import copy
import functools
import os
import pathlib
import pickle
import warnings
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pescador
from pescador import (
    SKIP,
    SPAWN,
    ChainMux,
    ParallelStreamer,
    RoundRobinMux,
    Seeded,
    ShuffledMux,
    StochasticMux,
    Streamer,
    ZMQStreamer,
)
from pescador.sources import Rows, Windows
from streams import count, data, forever


class Untouchable:
    """An argument that must not be formatted, measured or compared."""

    def _refuse(self, *args):
        raise AssertionError("it was touched")

    __repr__ = __str__ = __eq__ = __len__ = __iter__ = __bool__ = _refuse
    __hash__ = None
    __class__ = property(_refuse)


def lines(streamer):
    return str(streamer).split("\n")


def old_mux(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pescador.Mux(*args)


ONE_OF_EACH = [
    Streamer(count, 3),
    StochasticMux(["a", "b"], 1, 2),
    ShuffledMux(["a", "b"]),
    RoundRobinMux(["a", "b"]),
    ChainMux(["a", "b"]),
    ZMQStreamer(Streamer(data, 3)),
    ParallelStreamer(ShuffledMux([Streamer(data, 3)]), 2),
    pescador.BaseMux(["a"]),
    old_mux(["a", "b"], 1),
    Rows({"x": np.zeros(3)}),
    Windows("a.npz", 3),
]


@pytest.mark.parametrize("streamer", ONE_OF_EACH, ids=lambda streamer: type(streamer).__name__)
def test_each_public_class_names_itself_in_one_line(streamer):
    assert repr(streamer).startswith(f"{type(streamer).__name__}(")
    assert "\n" not in repr(streamer)
    assert " at 0x" not in repr(streamer)
    assert lines(streamer)[0] == repr(streamer)


@pytest.mark.parametrize("streamer", ONE_OF_EACH, ids=lambda streamer: type(streamer).__name__)
def test_showing_a_streamer_changes_nothing_of_it(streamer):
    before = streamer.__dict__.copy()
    repr(streamer), str(streamer), streamer._repr_html_()
    assert streamer.__dict__.keys() == before.keys()
    assert all(streamer.__dict__[name] is value for name, value in before.items())
    for again in (copy.copy(streamer), copy.deepcopy(streamer)):
        assert str(again) == str(streamer)
    assert str(pickle.loads(pickle.dumps(streamer))) == str(streamer)


@pytest.mark.parametrize(
    ("streamer", "expected"),
    [
        (Streamer(count, 3, start=2), "Streamer(count, 3, start=2)"),
        (Streamer("abc"), "Streamer('abc')"),
        (Streamer(range(3)), "Streamer(range(0, 3))"),
        (Streamer([1.5, None]), "Streamer([1.5, None])"),
        (Streamer(list(range(10_000))), "Streamer(list of 10,000)"),
        (Streamer(count(3)), "Streamer(generator count)"),
        (Streamer(count, *range(9)), "Streamer(count, 9 arguments)"),
        (Streamer(count, np.zeros((10, 2), "f4")), "Streamer(count, ndarray float32[10, 2])"),
        (Streamer(count, pathlib.PurePosixPath("a/b")), "Streamer(count, PurePosixPath('a/b'))"),
        (Streamer(count, Untouchable()), "Streamer(count, <Untouchable>)"),
        (Streamer(count, SKIP, rng=SPAWN), "Streamer(count, pescador.SKIP, rng=pescador.SPAWN)"),
        (Streamer(count, 10**5000), "Streamer(count, int of 16,610 bits)"),
        (Streamer(Streamer(count, 3)), "Streamer(Streamer(count, ...))"),
        (Streamer(count, np.str_("a"), np.float32(0.5)), "Streamer(count, 'a', 0.5)"),
        (Streamer(functools.partial(count, 3)), "Streamer(partial(count))"),
        (Streamer("x" * 99), "Streamer('xxxxxxxxxxxxx...xxxxxxxxxxxxxxxx')"),
    ],
)
def test_arguments_are_named_measured_or_abbreviated(streamer, expected):
    assert repr(streamer) == expected


@pytest.mark.parametrize("mark", [SKIP, SPAWN])
def test_a_copy_of_a_mark_is_the_mark(mark):
    assert copy.copy(mark) is copy.deepcopy(mark) is pickle.loads(pickle.dumps(mark)) is mark
    # As earlier versions pickled it.
    place = {"SKIP": "maps", "SPAWN": "seeded"}[mark.name]
    assert pickle.loads(f"cpescador.{place}\n{mark.name}\n.".encode()) is mark


def test_settings_that_are_not_the_default_are_shown():
    mux = StochasticMux(["a"] * 30, 4, rate=None, mode="exhaustive", random_state=0)
    assert repr(mux) == "StochasticMux(30 streams, n_active=4, rate=None, mode='exhaustive')"
    assert repr(ZMQStreamer(mux, timeout=1)) == "ZMQStreamer(StochasticMux(30 streams), timeout=1)"


def test_three_streams_are_shown_one_by_one_with_their_weights():
    inner = RoundRobinMux(["ab", "c"], "cycle")
    mux = ShuffledMux([Streamer(forever, "a"), inner, "xyz"], weights=[2, 1, 1])
    assert lines(mux) == [
        "ShuffledMux(3 streams)",
        "    Streamer(forever, 'a'), weight 0.5",
        "    RoundRobinMux(2 streams, mode='cycle'), weight 0.25",
        "        Streamer('ab')",
        "        Streamer('c')",
        "    Streamer('xyz'), weight 0.25",
    ]


def test_many_streams_are_grouped_by_kind():
    pool = [Streamer(forever, Untouchable()) for _ in range(30_000)]
    pool += [ShuffledMux(["a"] * n) for n in (2, 5)]
    weights = np.ones(len(pool))
    weights[-2:] = 9999
    mux = StochasticMux(pool, 32, 16, weights=weights)
    assert lines(mux) == [
        "StochasticMux(30,002 streams, n_active=32, rate=16)",
        "    30,000 x Streamer(forever, 1 argument), weight 2e-05 each",
        "    2 x ShuffledMux(2 to 5 streams), weight 0.2 each, the first of them:",
        "        Streamer('a')",
        "        Streamer('a')",
    ]


def test_streams_of_partials_and_methods_are_of_a_kind():
    class Reader:
        def read(self):
            yield 1

    pool = [Streamer(functools.partial(count, n)) for n in range(50)]
    pool += [Streamer(Reader().read) for _ in range(50)]
    assert lines(ShuffledMux(pool))[1:] == [
        "    50 x Streamer(partial(count))",
        "    50 x Streamer(read)",
    ]


def test_more_kinds_than_fit_are_counted():
    pool = [Streamer(count, *range(n)) for n in range(12)]
    assert lines(ShuffledMux(pool))[-1] == "    4 more"


def test_equal_weights_are_not_worth_a_word():
    assert "weight" not in str(ShuffledMux("abc"))


def test_a_map_of_a_mux_shows_the_mux_below_it():
    mux = ShuffledMux(["a", "b"])
    assert lines(Streamer(pescador.buffer_stream, mux, 64, partial=True)) == [
        "Streamer(buffer_stream, ShuffledMux(2 streams), 64, partial=True)",
        "    ShuffledMux(2 streams)",
        "        Streamer('a')",
        "        Streamer('b')",
    ]


def test_only_an_arguments_kind_and_size_is_looked_at():
    mux = ShuffledMux([Streamer(forever, Untouchable(), key=Untouchable()) for _ in range(3)])
    assert str(mux).count("<Untouchable>") == 6


def test_iterations_and_activated_copies_say_so():
    mux = ShuffledMux("ab")
    with mux as active:
        assert lines(active)[0] == "ShuffledMux(2 streams), activated"
        assert lines(mux)[0] == "ShuffledMux(2 streams), 1 open iteration"
    assert lines(mux)[0] == "ShuffledMux(2 streams)"


def test_a_chain_of_a_function_names_the_function():
    def repeats():
        yield "a"

    assert str(ChainMux(repeats, "cycle")) == "ChainMux(repeats, mode='cycle')"


@pytest.mark.parametrize("cls", [Streamer, StochasticMux, ZMQStreamer, ParallelStreamer])
def test_a_half_built_object_can_be_shown(cls):
    half = cls.__new__(cls)
    assert repr(half) == str(half) == f"<{cls.__name__} that was not initialised>"
    half.streamers = None
    half.weights = Untouchable()
    half.active_count_ = "?"
    assert str(half) == f"{cls.__name__}(None)"
    half.streamers = half.args = half.kwargs = Untouchable()
    assert str(half) == f"{cls.__name__}(<Untouchable>)"


def test_a_mux_that_holds_itself_can_be_shown():
    mux = ShuffledMux("ab")
    mux.streamers.append(mux)
    assert lines(mux)[-1] == "    ShuffledMux(3 streams), which is above"
    mux.streamers = mux
    assert lines(mux) == ["ShuffledMux(ShuffledMux)"]
    stream = Streamer("ab")
    stream.streamer = stream
    assert lines(stream) == [
        "Streamer(Streamer(...))",
        "    Streamer(Streamer(...)), which is above",
    ]


def test_a_subclass_is_shown_under_its_own_name():
    class Special(StochasticMux):
        def __init__(self, streamers):
            super().__init__(streamers, 1, 5)

    assert repr(Special("ab")) == "Special(2 streams, n_active=1, rate=5)"


def test_what_is_no_streamer_in_a_pool_is_shown_all_the_same():
    mux = ShuffledMux("ab")
    mux.streamers = [1, Untouchable()]
    assert lines(mux) == ["ShuffledMux(2 streams)", "    1", "    <Untouchable>"]
    mux.streamers = [Untouchable()] * 10
    assert lines(mux)[1] == "    10 x <Untouchable>"


leaves = st.one_of(
    st.text(max_size=200).map(lambda text: Streamer(forever, text)),
    st.binary(max_size=200).map(lambda text: Streamer(forever, a=text)),
    st.lists(st.integers()).map(Streamer),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=9).map(ShuffledMux),
        st.lists(inner, min_size=1, max_size=9).map(lambda pool: StochasticMux(pool * 50, 1, 5)),
        inner.map(lambda stream: Streamer(pescador.buffer_stream, stream, 3)),
    ),
    max_leaves=60,
)


@given(trees)
def test_any_tree_is_shown_in_a_few_short_lines(streamer):
    assert len(repr(streamer)) <= 100
    assert 1 <= len(lines(streamer)) <= 30
    # 100, what is said of weights and groups, and the indent.
    assert max(map(len, lines(streamer))) <= 180


@given(trees)
def test_the_notebook_form_is_the_same_tree_in_well_formed_html(streamer):
    root = xml.etree.ElementTree.fromstring(streamer._repr_html_())
    shown = [code.text for code in root.iter("code")]
    assert shown == [line.strip() for line in lines(streamer)]


def test_the_console_form_is_the_tree():
    class Printer:
        def text(self, text):
            self.said = text

    mux, printer = ShuffledMux("ab"), Printer()
    mux._repr_pretty_(printer, False)
    assert printer.said == str(mux)
    mux._repr_pretty_(printer, True)
    assert printer.said == repr(mux)


def test_sources_say_what_they_read_and_how():
    assert repr(Rows("a.npz", ["x"], order="shuffled")) == (
        "Rows('a.npz', keys=['x'], order='shuffled')"
    )
    assert repr(Windows({"x": np.zeros(9)}, 3, hop=2)) == "Windows(dict of 1, length=3, hop=2)"
    mux = ShuffledMux([Rows(f"{i}.npz", random_state=i) for i in range(100)])
    assert lines(mux)[1] == "    100 x Rows(.npz files)"
    mux = ShuffledMux([Rows(f"{i}.npz", random_state=7) for i in range(100)])
    assert lines(mux)[1] == "    100 x Rows(.npz files, random_state=7)"


class Hooked(Streamer):
    """Counts its items, at Python speed."""

    def iterate(self, max_iter=None):
        yield from super().iterate(max_iter)


def names(name, *_, **__):
    """Where its items are made."""
    while True:
        yield {"name": np.array(name), "pid": np.array(os.getpid())}


GENERATOR = "reads from a generator object or an open file, which can be read once"


def mixed():
    """A mux of streams that can run elsewhere, and of others."""
    return ShuffledMux(
        [
            Streamer(names, "a"),
            Streamer(names("b")),
            StochasticMux([Streamer(names, "c", rng=SPAWN), Streamer(names("d"))], 2, 4),
            Hooked(names, "e"),
            Streamer(names, "f", np.random.RandomState(0)),
        ]
    )


def test_a_parallel_streamer_says_which_streams_run_here_and_why():
    assert lines(ParallelStreamer(Seeded(mixed(), 0), 2))[10:] == [
        "    2 streams run in 2 processes",
        f"    2 streams run here: each {GENERATOR}",
        "        Streamer(generator names)",
        "    1 stream runs here: it overrides a hook of its class",
        "        Hooked(names, 'e')",
        "    1 stream runs here: it draws from a random generator that others may share",
        "        Streamer(names, 'f', <RandomState>)",
    ]


def test_threads_that_share_a_random_state_leave_streams_here():
    run = Seeded(ShuffledMux([Streamer(names, "a"), Streamer(names, "b", rng=SPAWN)]), 0)
    assert lines(ParallelStreamer(run, 1, kind="thread"))[-3:] == [
        "    1 stream runs in 1 thread",
        "    1 stream runs here: it may draw from global random states, which all threads share",
        "        Streamer(names, 'a')",
    ]
    run = Seeded(run.streamer, 0, states=())
    assert lines(ParallelStreamer(run, 1, kind="thread"))[-1] == "    2 streams run in 1 thread"


@pytest.mark.parametrize(
    ("streamer", "workers", "expected"),
    [
        (mixed(), 0, "here: workers=0"),
        (Streamer(names, "a"), 1, "in one process, as there is no mux"),
        (Streamer(names, "a"), 3, "in one process, as there is no mux"),
        (Streamer(names("a")), 3, f"here: it {GENERATOR}"),
        (ChainMux(names), 3, "here: it has a function make its streams"),
    ],
)
def test_a_parallel_streamer_says_where_a_stream_runs_as_a_whole(streamer, workers, expected):
    parallel = ParallelStreamer(streamer, workers)
    assert lines(parallel)[-1] == f"    all of it runs {expected}"


def test_the_streams_that_are_said_to_run_here_run_here():
    parallel = ParallelStreamer(Seeded(mixed(), 0), 2)
    here = {str(item["name"]) for item in parallel(max_iter=99) if item["pid"] == os.getpid()}
    assert here == set("bdef")


def test_where_streams_run_is_said_beneath_maps_and_a_part_of_a_large_pool_is_looked_at():
    mux = ShuffledMux([Streamer(names, Untouchable()) for _ in range(10_001)])
    batches = Streamer(pescador.buffer_stream, ParallelStreamer(mux, 2), 64)
    assert lines(batches)[1:] == [
        "    ParallelStreamer(ShuffledMux(10,001 streams), workers=2)",
        "        ShuffledMux(10,001 streams)",
        "            10,001 x Streamer(names, 1 argument)",
        "        10,000 streams run in 2 processes",
        "        the others were not looked at",
    ]
