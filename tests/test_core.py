"""Streamer and streamable."""

import copy
import gc
import inspect
import pickle
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pescador
from pescador import ArgumentError, PescadorError, Streamer, streamable
from streams import Failure, callers, count, data, failing, nothing


@pytest.mark.parametrize(
    "source", ["abc", ["a", "b", "c"], ("a", "b", "c"), {"a": 1, "b": 2, "c": 3}]
)
def test_a_streamer_over_an_iterable_gives_its_items_each_time(source):
    streamer = Streamer(source)
    assert list(streamer) == list(streamer) == ["a", "b", "c"]


def test_a_streamer_passes_its_arguments_to_the_generator_function():
    assert list(Streamer(count, 3, start=2)) == [2, 3, 4]


@pytest.mark.parametrize("source", [3, None, len, lambda: [1, 2], count(3).__next__, object()])
def test_what_gives_no_stream_is_refused_with_its_name(source):
    with pytest.raises(ArgumentError, match="streamer="):
        Streamer(source)


@given(n=st.integers(0, 20), max_iter=st.none() | st.integers(0, 25) | st.floats(0, 25))
def test_iterate_yields_max_iter_items_or_all(n, max_iter):
    expected = n if max_iter is None else min(n, int(np.ceil(max_iter)))
    assert list(Streamer(count, n).iterate(max_iter)) == list(range(expected))


@given(n=st.integers(1, 6), max_iter=st.integers(0, 25))
def test_cycle_starts_again_until_max_iter(n, max_iter):
    expected = [i % n for i in range(max_iter)]
    streamer = Streamer(count, n)
    assert list(streamer.cycle(max_iter)) == expected
    assert list(streamer(max_iter, cycle=True)) == expected
    # A part of an item counts for iterate, but not for cycle.
    assert list(streamer.cycle(max_iter + 0.5)) == expected
    assert list(streamer.cycle(np.array(max_iter))) == expected


@pytest.mark.parametrize("max_iter", [-1, "3", float("nan"), [2], 1j])
@pytest.mark.parametrize("method", ["iterate", "cycle", "__call__"])
def test_a_max_iter_that_is_no_count_is_refused_with_its_value(method, max_iter):
    with pytest.raises(ArgumentError, match="max_iter="):
        next(getattr(Streamer("abc"), method)(max_iter))
    with pytest.raises(ArgumentError, match="max_iter="):
        next(getattr(pescador.ShuffledMux(["abc"]), method)(max_iter))


def test_infinity_is_no_bound():
    assert list(Streamer("abc").iterate(float("inf"))) == ["a", "b", "c"]


@pytest.mark.parametrize("max_iter", [None, 5])
def test_a_cycle_of_a_stream_without_items_raises_and_names_it(max_iter):
    stream = Streamer(nothing).cycle(max_iter)
    expected = r"cycle\(\) would .* for ever: 256 times in a row, Streamer\(nothing\) gave nothing"
    with pytest.raises(PescadorError, match=expected):
        next(stream)
    assert list(stream) == []


def test_a_cycle_that_has_given_all_it_was_asked_for_ends():
    """It asks for one item more, which a stream that can be read once does not have."""
    items = iter([1, 2, 3])

    def source():
        yield from items

    assert list(Streamer(source).cycle(3)) == [1, 2, 3]
    assert list(Streamer(nothing).cycle(0)) == []


@pytest.mark.parametrize(
    "make",
    [
        Streamer.iterate,
        Streamer.cycle,
        Streamer.__call__,
        iter,
        lambda s: pescador.buffer_stream(s, 2),
        lambda s: pescador.tuples(s, "X"),
        lambda s: pescador.keras_tuples(s, "X"),
        lambda s: pescador.cache(s, 2),
    ],
)
def test_every_iteration_is_a_true_generator(make):
    generator = make(Streamer(data, 5))
    assert isinstance(generator, types.GeneratorType)
    next(generator)
    generator.close()
    assert list(generator) == []


@pytest.mark.parametrize(
    "function",
    [
        Streamer.iterate,
        Streamer.cycle,
        Streamer.__call__,
        pescador.buffer_stream,
        pescador.tuples,
        pescador.keras_tuples,
        pescador.cache,
    ],
)
def test_maps_and_methods_can_be_wrapped_in_a_streamer(function):
    assert inspect.isgeneratorfunction(function)


def test_a_method_of_a_streamer_makes_another_streamer():
    assert list(Streamer(Streamer("abc").iterate, max_iter=2)) == ["a", "b"]


def test_a_streamer_can_be_the_callable_of_another():
    inner = Streamer(count, 10)
    outer = Streamer(inner, max_iter=3)
    assert list(outer) == [0, 1, 2]
    assert list(outer(max_iter=2)) == [0, 1]


def test_nothing_starts_before_the_first_next():
    started = []

    def source():
        started.append(True)
        yield 1

    streamer = Streamer(source)
    iteration = streamer.iterate()
    assert not started
    assert streamer.active == 0
    next(iteration)
    assert started
    assert streamer.active == 1


def test_active_counts_open_iterations_and_falls_on_end_close_and_error():
    streamer = Streamer(failing, 2)
    first, second = streamer.iterate(), streamer.iterate(1)
    next(first), next(second)
    assert streamer.active == streamer.active_count_ == 2
    assert list(second) == []
    assert streamer.active == 1
    with pytest.raises(Failure):
        list(first)
    assert streamer.active == 0
    third = streamer.iterate()
    next(third)
    third.close()
    assert streamer.active == 0


def test_leaving_a_context_that_was_not_entered_is_an_error():
    with pytest.raises(PescadorError, match="not entered"):
        Streamer("abc").__exit__()


def test_an_activated_copy_is_told_from_its_original():
    streamer = Streamer("abc")
    assert not streamer.is_activated_copy
    with streamer as active:
        assert active.is_activated_copy
        assert active is not streamer
        assert active.stream_ is not None
        with active as again:
            assert again is active
        assert streamer.active == 1
        assert list(active.iterate()) == ["a", "b", "c"]
    assert streamer.active == 0
    assert streamer.stream_ is None


def test_an_activated_copy_goes_on_where_it_was():
    with Streamer(count, 10) as active:
        assert list(active.iterate(3)) == [0, 1, 2]
        # The bounded iteration asked its source once more.
        assert list(active.iterate(2)) == [4, 5]


def test_a_bounded_stream_asks_its_source_once_more():
    asked = []

    def source():
        for i in range(10):
            asked.append(i)
            yield i

    assert list(Streamer(source).iterate(3)) == [0, 1, 2]
    assert asked == [0, 1, 2, 3]
    del asked[:]
    assert list(Streamer(source).cycle(3)) == [0, 1, 2]
    assert asked == [0, 1, 2, 3]


def test_errors_of_the_source_come_through_as_they_are():
    with pytest.raises(Failure):
        list(Streamer(failing, 3))


def test_copies_are_independent_and_equal():
    streamer = Streamer(count, 3)
    shallow, deep = copy.copy(streamer), copy.deepcopy(streamer)
    pickled = pickle.loads(pickle.dumps(streamer))
    for other in (shallow, deep, pickled):
        assert other is not streamer
        assert list(other) == [0, 1, 2]
        assert vars(other) == vars(streamer)
        # Compiled code finds them by identity.
        assert all(name is sys.intern(name) for name in vars(other))


def test_instances_carry_attributes_of_the_user():
    streamer = Streamer(count, 3)
    streamer.note = ["mine"]
    with streamer as active:
        assert active.note == ["mine"]
        assert active.note is not streamer.note
    assert list(pescador.ShuffledMux([streamer]).iterate(2)) == [0, 1]


class Kept(Streamer):
    """Has attributes in slots, one of which is not set."""

    __slots__ = ("__hidden", "note", "unset")

    def __init__(self, *args):
        super().__init__(*args)
        self.note, self.__hidden = ["mine"], 1

    def hidden(self):
        return self.__hidden


class KeptMux(pescador.ShuffledMux):
    __slots__ = ("note",)


class KeptSharded(pescador.Sharded):
    __slots__ = ("note",)


def counted(shard):
    return Streamer(count, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Kept(count, 3),
        lambda: KeptMux([Streamer(count, 3)], random_state=0),
        lambda: KeptMux([Streamer(count, 3)]),
        lambda: KeptSharded(counted, 2),
    ],
)
def test_copies_and_pickles_have_what_a_subclass_keeps_in_slots(make):
    streamer = make()
    streamer.note = ["mine"]
    for other in (copy.copy(streamer), copy.deepcopy(streamer)):
        assert type(other) is type(streamer)
        assert other.note == ["mine"]
        assert "note" not in vars(other)
        assert vars(other).keys() == vars(streamer).keys()
    assert other.note is not streamer.note
    pickled = pickle.loads(pickle.dumps(streamer))
    assert pickled.note == ["mine"]
    assert list(pickled.iterate(2)) == list(streamer.iterate(2))
    if isinstance(streamer, Kept):
        assert pickled.hidden() == other.hidden() == 1
        assert not hasattr(pickled, "unset")
        with streamer as active:
            assert active.note == ["mine"]


class KeptAside(Kept):
    """Is pickled as by Python itself, and as subclasses of pescador 3.0 with slots were."""

    __getstate__ = object.__getstate__


class KeptAsideMux(KeptMux):
    __getstate__ = object.__getstate__


@pytest.mark.parametrize(
    "streamer",
    [KeptAside(count, 3), KeptAsideMux([Streamer(count, 3)], random_state=0)],
    ids=["streamer", "mux"],
)
def test_pickles_that_have_slots_beside_the_other_attributes_are_read(streamer):
    streamer.note = ["mine"]
    pickled = pickle.loads(pickle.dumps(streamer))
    assert pickled.note == ["mine"]
    assert "note" not in vars(pickled)
    assert list(pickled.iterate(2)) == list(streamer.iterate(2))


class Doubling(Streamer):
    """Overrides iterate."""

    def iterate(self, max_iter=None):
        for item in super().iterate(max_iter):
            yield 2 * item


class Activating(Streamer):
    """Overrides _activate."""

    def _activate(self):
        self.stream_ = iter([7, 8, 9])


@pytest.mark.parametrize(("cls", "items"), [(Doubling, [0, 2, 4]), (Activating, [7, 8, 9])])
def test_hooks_of_a_subclass_are_called_wherever_it_is_used(cls, items):
    streamer = cls(count, 3)
    assert list(streamer) == items
    assert list(streamer.cycle(4)) == [*items, items[0]]
    assert list(pescador.ChainMux([streamer])) == items
    assert list(pescador.StochasticMux([streamer], 1, None, mode="exhaustive")) == items
    assert list(pescador.ChainMux([pescador.ChainMux([streamer])]).iterate(2)) == items[:2]


def test_a_method_patched_on_an_instance_or_a_class_is_called(monkeypatch):
    streamer = Streamer(count, 3)
    streamer.iterate = lambda max_iter=None: iter("xyz")
    assert list(pescador.ChainMux([streamer])) == ["x", "y", "z"]
    monkeypatch.setattr(Streamer, "_activate", lambda self: setattr(self, "stream_", iter("pq")))
    assert list(pescador.ChainMux([Streamer(count, 3)])) == ["p", "q"]


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, "a"), {}), (([1],), {"b": 2})])
@pytest.mark.parametrize(
    "same", [lambda it: it, copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_a_plain_streamer_in_a_mux_runs_without_a_frame_of_streamer(same, args, kwargs):
    plain = same(Streamer(callers, *args, **kwargs))
    files = list(pescador.ChainMux([plain]))
    assert pescador.mux.base.__file__ in files
    assert pescador.core.__file__ not in files


def test_a_bound_method_of_a_subclass_sees_the_activated_copy():
    class Source(Streamer):
        def __init__(self):
            super().__init__(self.items)
            self.seen = 0

        def items(self):
            for _ in range(3):
                self.seen += 1
                yield self.seen

    source = Source()
    assert list(source) == list(source) == [1, 2, 3]
    assert list(pescador.ChainMux([source, source])) == [1, 2, 3, 1, 2, 3]
    assert source.seen == 0


class Steps:
    """An iterator that does something at its third step."""

    def __init__(self, act):
        self.act = act
        self.n = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.n += 1
        if self.n == 3:
            self.act(self)
        return {"x": self.n}


class Nothing:
    """No iterator."""


def loses_its_step(steps):
    steps.__class__ = type("Robbed", (), {"__next__": Steps.__next__})
    del type(steps).__next__


def becomes_another(steps):
    steps.__class__ = Nothing


def closes_itself():
    yield {"x": 1}
    OPEN[0].close()
    yield {"x": 2}


OPEN = []


class From:
    """Iterates over what a function gives."""

    def __init__(self, function, *args):
        self.function = function
        self.args = args

    def __iter__(self):
        OPEN[:] = [self.function(*self.args)]
        return OPEN[0]


WAYS = {
    "iterate": list,
    "cycle": lambda streamer: list(streamer.cycle(9)),
    "StochasticMux": lambda streamer: list(pescador.StochasticMux([streamer], 1, 99)),
    "ShuffledMux": lambda streamer: list(pescador.ShuffledMux([streamer])),
    "RoundRobinMux": lambda streamer: list(pescador.RoundRobinMux([streamer])),
    "ChainMux": lambda streamer: list(pescador.ChainMux([streamer])),
    "buffer_stream": lambda streamer: list(pescador.buffer_stream(streamer, 4)),
    "a streamer of it": lambda streamer: list(Streamer(pescador.tuples, streamer, "x")),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("source", "error"),
    [
        (From(Steps, loses_its_step), TypeError),
        (From(Steps, becomes_another), TypeError),
        (From(closes_itself), ValueError),
        (From(lambda: 5), TypeError),
        (From(lambda: [1, 2]), TypeError),
    ],
    ids=["robbed", "another", "closed", "a number", "a list"],
)
def test_a_source_that_stops_being_an_iterator_is_an_error(way, source, error):
    with pytest.raises(error):
        way(Streamer(source))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_iteration_that_is_no_iterable_is_an_error(way):
    class Broken(Streamer):
        def iterate(self, max_iter=None):
            return 5

    with pytest.raises(TypeError, match="int"):
        way(Broken("ab"))


def test_a_streamer_that_lacks_an_attribute_is_an_error():
    streamer = Streamer("ab")
    del streamer.args
    streamer.other = 1
    with pytest.raises(AttributeError, match="args"):
        list(streamer)


def test_a_dropped_iteration_closes_its_source():
    closed = []

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    next(Streamer(source).iterate())
    mux = pescador.ShuffledMux([Streamer(source)] * 3, random_state=0)
    list(mux.iterate(50))
    gc.collect()
    assert len(closed) == 4


def test_streamable_makes_streamers_and_keeps_name_and_signature():
    @streamable
    def numbers(n, start=0, *, step=1):
        """Numbers."""
        yield from range(start, n, step)

    streamer = numbers(6, step=2)
    assert isinstance(streamer, Streamer)
    assert list(streamer) == list(streamer) == [0, 2, 4]
    assert (streamer.args, streamer.kwargs) == ((6, 0), {"step": 2})
    assert numbers.__name__ == "numbers"
    assert numbers.__doc__ == "Numbers."
    assert list(inspect.signature(numbers).parameters) == ["n", "start", "step"]
    with pytest.raises(TypeError, match="n"):
        numbers()


def test_streamable_refuses_a_plain_function():
    @streamable
    def plain(n):
        return n

    with pytest.raises(PescadorError, match="generator function"):
        plain(3)


def test_an_active_streamer_is_generic_at_run_time():
    assert list(Streamer[int]([1, 2])) == [1, 2]
