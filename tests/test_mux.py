"""The muxes: what each promises, on the compiled path and on the path of hooks."""

import collections
import copy
import ctypes
import itertools
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pescador
from conftest import with_hooks
from effort import examples
from pescador import ArgumentError, PescadorError, Streamer, _choice, _empty
from streams import Failure, count, failing, forever, letters, nothing

MODES = ("with_replacement", "single_active", "exhaustive")
DISTS = ("constant", "binomial", "poisson")


def all_kinds(muxes, streamers, seed=None):
    """One mux of each class and mode over the same streamers."""
    k = max(1, len(streamers) // 2)
    for mode in MODES:
        for dist in DISTS:
            yield muxes.StochasticMux(streamers, k, 3, mode=mode, dist=dist, random_state=seed)
        yield muxes.StochasticMux(streamers, k, None, mode=mode, random_state=seed)
    yield muxes.ShuffledMux(streamers, random_state=seed)
    for mode in ("exhaustive", "cycle", "permuted_cycle"):
        yield muxes.RoundRobinMux(streamers, mode, random_state=seed)
    for mode in ("exhaustive", "cycle"):
        yield muxes.ChainMux(streamers, mode)


# ------------------------------------------------------------------------ what all promise


def test_both_paths_of_a_mux_give_the_same_samples():
    streamers = [Streamer(count, n, 10 * n) for n in (1, 2, 5, 9)] + letters("xyz")
    ours = all_kinds(pescador, streamers, seed=4)
    for mux in ours:
        hooked = copy.copy(mux)
        hooked.__class__ = with_hooks(type(mux))
        assert list(mux.iterate(200)) == list(hooked.iterate(200)), (type(mux), vars(mux))


def test_two_iterations_of_a_seeded_mux_are_equal_and_independent(muxes):
    for mux in all_kinds(muxes, [*letters("abc"), Streamer(count, 4)], seed=0):
        expected = list(mux.iterate(40))
        first, second = mux.iterate(40), mux.iterate(40)
        taken = [(next(first, None), next(second, None)) for _ in expected]
        assert [a for a, _ in taken] == [b for _, b in taken] == expected
        assert mux.active == 2
        first.close(), second.close()
        assert mux.active == 0


def test_an_unseeded_mux_draws_from_the_global_state(muxes):
    mux = muxes.ShuffledMux(letters("abcd"))
    assert mux.rng is np.random
    np.random.seed(5)
    first = list(mux.iterate(20))
    second = list(mux.iterate(20))
    np.random.seed(5)
    assert list(mux.iterate(40)) == first + second


def test_assigning_a_generator_to_rng_takes_effect(muxes):
    mux = muxes.ShuffledMux(letters("abcd"))
    mux.rng = np.random.RandomState(3)
    assert list(mux.iterate(20)) == list(
        muxes.ShuffledMux(letters("abcd"), random_state=3).iterate(20)
    )


def test_a_generator_is_copied_and_shared_as_a_randomstate_is(muxes):
    # Both make doubles of the same bits in the same way, and a ShuffledMux draws nothing else.
    def tree(state):
        inner = [muxes.ShuffledMux(letters("abc"), random_state=state) for _ in range(3)]
        return muxes.ShuffledMux([*inner, "xyz"], random_state=state)

    samples = [
        [list(mux.iterate(60)), list(mux.iterate(60))]
        for mux in (
            tree(np.random.RandomState(np.random.MT19937(7))),
            tree(np.random.Generator(np.random.MT19937(7))),
        )
    ]
    assert samples[0] == samples[1]
    assert samples[0][0] == samples[0][1]


class OwnGenerator:
    """Something that draws, but is none of NumPy's generators."""

    def choice(self, n, p=None):
        return int(np.argmax(p))


def test_a_generator_of_another_kind_is_asked_in_python():
    mux = pescador.ShuffledMux(letters("abc"), weights=[1, 3, 2])
    mux.rng = OwnGenerator()
    assert list(mux.iterate(3)) == ["b", "b", "b"]


FOR_EVER = "would go on for ever: 256 times in a row, "


def starts_again(mux):
    """Whether a mux starts streams again that were empty."""
    mode = mux.__dict__.get("mode")
    if isinstance(mux, pescador.StochasticMux):
        # Pruned until none is left.
        return not mux.prune_empty_streams and mode != "exhaustive"
    return mode in ("cycle", "permuted_cycle")


def test_a_mux_whose_streams_are_all_empty_ends_or_raises_if_it_starts_them_again(muxes):
    for n in (1, 2, 5):
        streamers = [Streamer(nothing) for _ in range(n)]
        unpruned = [
            muxes.StochasticMux(streamers, k, 4, mode=mode, prune_empty_streams=False)
            for mode in MODES
            for k in {1, n}
        ]
        for mux in [*all_kinds(muxes, streamers, seed=1), *unpruned]:
            if starts_again(mux):
                names = r"Streamer\(nothing\)(, .* gave| gave| and)"
                for stream in (mux.iterate(), mux.iterate(1), mux.cycle()):
                    with pytest.raises(PescadorError, match=rf"Mux\(.*{FOR_EVER}{names}"):
                        next(stream)
            else:
                assert list(mux) == []
                with pytest.raises(PescadorError, match=rf"cycle\(\) {FOR_EVER}.*Mux\("):
                    next(mux.cycle())
            assert mux.active == 0


def test_the_error_of_an_empty_loop_names_three_of_its_streams():
    mux = pescador.RoundRobinMux([*map(Streamer, ((), "", [])), *["", ""]], "cycle")
    expected = r"Streamer\(\(\)\), Streamer\(''\), Streamer\(\[\]\) and 2 more gave nothing"
    with pytest.raises(PescadorError, match=FOR_EVER + expected):
        next(mux.iterate())


def test_a_chain_of_no_streams_raises_in_a_cycle_and_else_ends(muxes):
    for streamers, name in (([], "an empty pool"), (nothing, r"Streamer\(nothing\)")):
        assert list(muxes.ChainMux(streamers)) == []
        with pytest.raises(PescadorError, match=FOR_EVER + name):
            next(muxes.ChainMux(streamers, "cycle").iterate())


@pytest.mark.parametrize("n", [1, 3])
def test_a_loop_raises_after_256_passes_in_a_row_and_no_earlier(muxes, n):
    starts = []

    def source():
        starts.append(None)
        # The last start of a pass.
        if len(starts) == 100 * n:
            yield "a sample"

    streamers = [Streamer(source)] * n
    for make in (
        lambda: muxes.RoundRobinMux(streamers, "cycle").iterate(),
        lambda: muxes.RoundRobinMux(streamers, "permuted_cycle", random_state=0).iterate(),
        lambda: muxes.ChainMux(streamers, "cycle").iterate(),
        lambda: muxes.ChainMux(lambda: (yield from streamers), "cycle").iterate(),
        lambda: muxes.ChainMux(streamers).cycle(),
        lambda: muxes.StochasticMux(streamers, 1, None, prune_empty_streams=False).iterate(),
    ):
        starts.clear()
        stream = make()
        assert next(stream) == "a sample"
        with pytest.raises(PescadorError, match=FOR_EVER):
            next(stream)
        # A StochasticMux looks once more, if it has not met them all.
        assert len(starts) in (356 * n, 356 * n + n - 1, 612 * n)


@pytest.mark.parametrize("prune", [False, True])
def test_a_stream_of_weight_zero_is_not_waited_for(muxes, prune):
    """It is left out, or keeps a slot to itself, while an empty stream comes again and again."""
    mux = muxes.StochasticMux(
        [Streamer(nothing), Streamer(count, 3)],
        2,
        4,
        weights=[1, 0],
        mode="single_active",
        prune_empty_streams=prune,
    )
    with pytest.raises(PescadorError, match=FOR_EVER):
        next(mux.iterate())


def test_one_stream_with_samples_keeps_a_mux_going_that_does_not_prune(muxes):
    streamers = [*[Streamer(nothing) for _ in range(9)], Streamer(count, 2)]
    for mode in ("with_replacement", "single_active"):
        mux = muxes.StochasticMux(
            streamers, 3, 4, mode=mode, prune_empty_streams=False, random_state=0
        )
        samples = list(mux.iterate(100))
        assert len(samples) == 100
        assert set(samples) == {0, 1}


def test_slots_that_are_vacant_keep_no_stream_from_coming():
    with pytest.warns(DeprecationWarning, match="use StochasticMux"):
        mux = pescador.Mux(
            [Streamer(nothing), Streamer(count, 1)],
            5,
            weights=[1, 1e-4],
            with_replacement=False,
            revive=True,
            prune_empty_streams=False,
            random_state=0,
        )
    assert list(mux.iterate(3)) == [0, 0, 0]


def test_a_mux_that_an_empty_stream_has_nearly_all_weight_of_warns_once(muxes, monkeypatch):
    weight = 4e-7
    if muxes.StochasticMux is not pescador.StochasticMux:
        # A million visits by way of hooks take a minute.
        monkeypatch.setattr(_empty, "VISITS", 2_000)
        weight = 2e-4
    mux = muxes.StochasticMux(
        [Streamer(nothing), Streamer(count, 1)],
        2,
        None,
        weights=[1, weight],
        mode="single_active",
        prune_empty_streams=False,
        random_state=1,
    )
    with pytest.warns(pescador.PescadorWarning) as caught:
        assert list(mux.iterate(2)) == [0, 0]
    [warning] = caught
    assert "streamers[0]=Streamer(nothing) is empty and has a weight of" in str(warning.message)


def test_an_empty_loop_inside_others_raises_through_them(muxes):
    streamer = Streamer(nothing)
    for _ in range(10):
        inner = muxes.RoundRobinMux([streamer, Streamer(nothing)], "cycle")
        streamer = muxes.ChainMux([Streamer(inner)], "cycle")
    starts_others = pescador.StochasticMux([streamer, *letters("ab")], 3, 4, random_state=0)
    for stream in (streamer.iterate(), streamer.cycle(), starts_others.iterate()):
        with pytest.raises(PescadorError, match=FOR_EVER + r"Streamer\(nothing\)"):
            list(stream)


@st.composite
def trees_of_empties(draw, depth=3):
    """A tree of muxes, most of whose streams are empty, and which of its muxes run by hooks."""
    if depth == 0 or not draw(st.integers(0, 3)):
        return Streamer(*draw(st.sampled_from([((),), (nothing,), (nothing,), (count, 2)])))
    children = draw(st.lists(trees_of_empties(depth - 1), min_size=1, max_size=3))
    n = len(children)
    others = ["ShuffledMux", "RoundRobinMux", "ChainMux"]
    name = draw(st.sampled_from(["StochasticMux"] * 3 + others))
    options = {"random_state": draw(st.integers(0, 9))}
    if name in ("StochasticMux", "ShuffledMux"):
        weights = st.lists(st.sampled_from([0, 1, 2]), min_size=n, max_size=n)
        options["weights"] = draw(st.none() | weights.filter(any))
    if name == "StochasticMux":
        options["n_active"] = draw(st.integers(1, n))
        options["rate"] = draw(st.sampled_from([None, 1, 4]))
        options["prune_empty_streams"] = draw(st.booleans())
        options["mode"] = draw(st.sampled_from(MODES))
    elif name == "RoundRobinMux":
        options["mode"] = draw(st.sampled_from(["exhaustive", "cycle", "permuted_cycle"]))
    elif name == "ChainMux":
        options["mode"] = draw(st.sampled_from(["exhaustive", "cycle"]))
    cls = getattr(pescador, name)
    mux = (with_hooks(cls) if not draw(st.integers(0, 3)) else cls)(children, **options)
    return Streamer(mux, draw(st.integers(1, 5))) if not draw(st.integers(0, 5)) else mux


@examples(100)
@given(trees_of_empties(), st.booleans())
def test_no_tree_of_empty_streams_hangs(tree, cycle):
    for _ in range(2):
        samples, said = [], ""
        try:
            samples.extend(tree(max_iter=20, cycle=cycle))
        except PescadorError as error:
            said = str(error)
        # A cycle gives all that it is asked for, or raises; an iteration may end, too.
        assert FOR_EVER in said if said else len(samples) == 20 or not cycle
        assert tree.active == 0


def seldom(starts, every):
    starts.append(None)
    if len(starts) % every == 0:
        yield len(starts)


def test_a_stream_that_is_seldom_not_empty_is_waited_for():
    starts = []

    def source():
        yield from seldom(starts, 200)

    for make in (
        lambda: pescador.StochasticMux([Streamer(source)], 1, 4, prune_empty_streams=False),
        lambda: pescador.RoundRobinMux([Streamer(source)], "cycle"),
        lambda: pescador.ChainMux([Streamer(source)], "cycle"),
    ):
        starts.clear()
        assert list(make().iterate(3)) == [200, 400, 600]
        starts.clear()
        nested = pescador.ChainMux([Streamer(source), Streamer(make())], "cycle")
        assert list(nested.iterate(3)) == [200, 400, 600]


def test_a_large_mux_that_is_seldom_not_empty_is_waited_for():
    starts = []

    def source():
        yield from seldom(starts, 100 * 200)

    # Every activation finds all hundred streams empty, two hundred times.
    for mux in (
        pescador.StochasticMux([Streamer(source)] * 100, 10, None),
        pescador.StochasticMux([Streamer(source)] * 100, 10, None, mode="exhaustive"),
        pescador.ChainMux([Streamer(source)] * 100),
    ):
        starts.clear()
        assert list(mux.cycle(1)) == [100 * 200]


@pytest.mark.parametrize("hook", ["_streamers_available", "_next_sample_index", "_replace_stream"])
def test_a_hook_that_raises_stopiteration_fails_and_does_not_end_the_mux(hook):
    def fail(self, *args):
        raise StopIteration

    mux = type("Failing", (pescador.RoundRobinMux,), {hook: fail})(["ab"])
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(mux)
    assert mux.active == 0


def test_what_a_hook_puts_into_a_slot_must_be_an_iterator():
    class Wrong(pescador.RoundRobinMux):
        def _new_stream(self, idx):
            self.streams_[idx] = ["a list"]

    with pytest.raises(TypeError, match="not an iterator"):
        next(Wrong(["ab"]).iterate())


def test_nesting_without_end_is_a_recursion_error_and_no_crash():
    streamer = Streamer(count, 3)
    for _ in range(100_000):
        streamer = pescador.ChainMux([streamer])

    def endless():
        yield pescador.ChainMux(endless)

    for mux in (streamer, pescador.ChainMux(endless)):
        for iteration in (mux.iterate(), mux.cycle()):
            with pytest.raises(RecursionError):
                next(iteration)


def test_a_generator_that_is_shared_later_is_shared_in_the_next_iteration():
    def tree(rng):
        inner = pescador.ShuffledMux(letters("abc"), random_state=rng)
        return inner, pescador.ShuffledMux([inner, *letters("de")], random_state=rng)

    expected = list(tree(np.random.RandomState(5))[1].iterate(50))
    inner, outer = tree(3)
    next(outer.iterate())
    inner.rng = outer.rng = np.random.RandomState(5)
    assert list(outer.iterate(50)) == expected


def test_errors_of_a_stream_come_through_and_end_the_iteration(muxes):
    for mux in all_kinds(muxes, [Streamer(failing, 2) for _ in range(3)], seed=0):
        iteration = mux.iterate()
        with pytest.raises(Failure):
            list(iteration)
        assert list(iteration) == []
        assert mux.active == 0


def test_iterables_are_made_streamers(muxes):
    assert sorted(muxes.RoundRobinMux(["ab", [1, 2], (3,)]), key=str) == [1, 2, 3, "a", "b"]


def test_muxes_nest(muxes):
    inner = [
        muxes.ShuffledMux(letters("abc"), random_state=1),
        muxes.RoundRobinMux(letters("de"), "cycle"),
        muxes.StochasticMux(letters("fghi"), 2, 3, random_state=2),
        muxes.ChainMux(["jk", "l"], "cycle"),
    ]
    outer = muxes.StochasticMux(inner, 3, 10, random_state=0)
    samples = list(outer.iterate(2000))
    assert len(samples) == 2000
    assert set(samples) == set("abcdefghijkl")
    assert [mux.active for mux in inner] == [0, 0, 0, 0]


def test_a_sample_that_reads_its_own_mux_is_refused():
    box = []

    def source():
        yield 1
        yield next(box[0])

    mux = pescador.ShuffledMux([Streamer(source)])
    box.append(mux.iterate())
    next(box[0])
    with pytest.raises(ValueError, match="already executing"):
        next(box[0])


def test_copies_and_pickles_of_a_mux_are_independent_and_equal(muxes):
    for mux in all_kinds(pescador, letters("abc"), seed=3):
        expected = list(mux.iterate(30))
        for other in (copy.copy(mux), copy.deepcopy(mux), pickle.loads(pickle.dumps(mux))):
            assert list(other.iterate(30)) == expected
    unseeded = pescador.ShuffledMux(letters("abc"))
    assert pickle.loads(pickle.dumps(unseeded)).rng is np.random
    assert copy.deepcopy(unseeded).rng is np.random


def test_a_copy_with_other_streamers_mixes_those(muxes):
    for mux in all_kinds(muxes, letters("abc"), seed=3):
        other = copy.copy(mux)
        other.streamers = letters("xyz")
        assert set(other.iterate(60)) <= set("xyz")
        assert set(mux.iterate(60)) <= set("abc")


def test_streamers_that_do_not_fit_the_weights_are_refused_at_activation(muxes):
    for mux in (muxes.ShuffledMux(letters("abc")), muxes.StochasticMux(letters("abc"), 2, 4)):
        mux.streamers = letters("abcd")
        with pytest.raises(PescadorError, match="weights"):
            list(mux.iterate(100))


def test_changing_the_pool_does_not_touch_an_iteration_that_is_open(muxes):
    for mux in all_kinds(muxes, letters("abc"), seed=0):
        expected = list(mux.iterate(30))
        iteration = mux.iterate(30)
        samples = [next(iteration)]
        mux.streamers[:] = letters("x")
        assert samples + list(iteration) == expected
        mux.streamers[:] = letters("abc")


def test_a_pool_that_was_emptied_or_is_a_tuple_is_no_harm():
    mux = pescador.RoundRobinMux(["ab"])
    mux.streamers = []
    for _ in range(100):
        assert list(mux) == []
    mux.streamers = (Streamer("ab"), Streamer("cd"))
    assert list(mux) == ["a", "c", "b", "d"]


def test_an_activated_round_robin_goes_on_after_a_stream_has_failed(muxes):
    def failing_late():
        yield "bad"
        raise Failure

    streams = [Streamer("abcd"), Streamer(failing_late), Streamer("x")]
    samples = []
    with muxes.RoundRobinMux(streams) as active:
        for _ in range(30):
            try:
                samples.extend(active.iterate())
                break
            except Failure:
                samples.append("!")
    assert samples == ["a", "bad", "x", "b", "!", "c", "d"]


class Header:
    """Iterating over it reads a header, of which there is none."""

    def __iter__(self):
        return iter([next(iter([]))])


def test_a_stopiteration_that_is_no_end_of_a_stream_is_an_error(muxes):
    for mux in all_kinds(muxes, [Streamer(Header()), Streamer(Header())], seed=0):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(mux.iterate(10))


def test_a_stopiteration_in_a_hook_is_an_error():
    class Stopping(pescador.ShuffledMux):
        def _on_stream_exhausted(self, idx):
            raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(Stopping(["ab"]))


class Epochs(Streamer):
    """Counts its iterations on itself."""

    epoch = 0

    def iterate(self, max_iter=None):
        self.epoch += 1
        for item in super().iterate(max_iter):
            yield item, self.epoch


@pytest.mark.parametrize("seed", [0, np.random.RandomState(0)], ids=["int", "state"])
def test_a_streamer_that_changes_itself_changes_inside_one_iteration_only(muxes, seed):
    streamer = Epochs("ab")
    mux = muxes.ShuffledMux([streamer], random_state=seed)
    for _ in range(2):
        assert [epoch for _, epoch in mux.iterate(6)] == [1, 1, 2, 2, 3, 3]
    assert streamer.epoch == 0


def test_an_engine_state_is_seen_on_the_activated_copy():
    streamers = [Streamer(nothing), *letters("ab")]
    mux = pescador.StochasticMux(streamers, 2, 5, random_state=0)
    assert mux.streams_ is None
    with mux as active:
        assert active.is_activated_copy
        assert active.rng is not mux.rng
        assert len(active.streams_) == 2
        assert active.distribution_.tolist() == [1 / 3] * 3
        assert active.valid_streams_.tolist() == [True] * 3
        list(active.iterate(50))
        assert not active.valid_streams_[0]
        assert active.distribution_[0] == 0
        assert active.stream_counts_.shape == active.stream_idxs_.shape == (2,)
        assert set(active.stream_idxs_) <= {1, 2}
        assert active.weight_norm_ == active.stream_weights_.sum()
    assert mux.streams_ is None
    assert not mux.is_activated_copy


def test_counts_on_the_activated_copy_are_the_samples_given(muxes):
    with muxes.ShuffledMux(letters("abc"), random_state=0) as active:
        samples = collections.Counter(active.iterate(50))
        assert active.stream_counts_.tolist() == [samples["a"], samples["b"], samples["c"]]
        more = collections.Counter(active.iterate(50))
        assert active.stream_counts_.sum() == 100
        assert samples + more == collections.Counter(
            dict(zip("abc", active.stream_counts_.tolist(), strict=True))
        )


def test_streams_on_the_activated_copy_are_the_streams(muxes):
    with muxes.RoundRobinMux([count(3), count(3, 10)]) as active:
        first, second = active.streams_
        assert next(first) == 0
        assert next(second) == 10
        assert list(active.iterate()) == [1, 11, 2, 12]


def test_the_state_of_a_running_engine_cannot_be_overwritten():
    with pescador.ShuffledMux(letters("abc")) as active:
        with pytest.raises(ValueError, match="read-only"):
            active.stream_weights_[0] = 0
        with pytest.raises(AttributeError, match="hooks"):
            active.stream_weights_ = np.ones(3)


@pytest.mark.parametrize("weights", [None, [1, 2, 3]])
def test_nothing_makes_an_array_of_a_running_engine_writeable(weights):
    for mux in all_kinds(pescador, letters("abc"), seed=0):
        if weights is not None and hasattr(mux, "weights"):
            mux.weights = np.array(weights, dtype=float)
        with mux as active:
            stream = active.iterate()
            next(stream)
            for name in ("idxs", "counts", "weights"):
                shown = getattr(active, f"stream_{name}_", None)
                while shown is not None:
                    for view in (np.asarray(shown), np.array(shown, copy=None)[:1]):
                        with pytest.raises(ValueError, match="WRITEABLE"):
                            view.flags.writeable = True
                    with pytest.raises((BufferError, TypeError)):
                        ctypes.c_char.from_buffer(shown)
                    shown = getattr(shown, "base", None)
            for name in ("distribution_", "valid_streams_"):
                if hasattr(active, name):
                    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
                        getattr(active, name).flags.writeable = True
            assert set(itertools.islice(stream, 30)) <= set("abc")


@pytest.mark.parametrize("name", pescador.mux.__all__)
def test_pickles_name_a_mux_as_every_release_does(name):
    cls = getattr(pescador, name)
    assert pickle.loads(f"cpescador.mux\n{name}\n.".encode()) is cls
    assert pickle.dumps(cls, 0).startswith(f"cpescador.mux\n{name}\n".encode())


def test_an_activated_copy_cannot_be_pickled():
    with pescador.ShuffledMux(letters("abc")) as active, pytest.raises(TypeError):
        pickle.dumps(active)


def test_streams_are_not_touched_before_they_are_sampled():
    class Loud:
        def __deepcopy__(self, memo):
            raise AssertionError("touched")

    quiet = Streamer(forever, 0)
    loud = [Streamer(forever, Loud()) for _ in range(50)]
    for mux in (
        pescador.ChainMux([quiet, *loud]),
        pescador.RoundRobinMux([quiet, *loud]),
        pescador.ShuffledMux([quiet, *loud], weights=[1] + [0] * 50),
        pescador.ChainMux([pescador.ShuffledMux([quiet, *loud], weights=[1] + [0] * 50)]),
    ):
        assert next(mux.iterate()) == 0


# ---------------------------------------------------------------------------- StochasticMux


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_exhaustive_mux_gives_each_stream_once(lengths, data, seed):
    k = data.draw(st.integers(1, len(lengths)))
    streamers = [Streamer([(i, j) for j in range(n)]) for i, n in enumerate(lengths)]
    for cls in (pescador.StochasticMux, with_hooks(pescador.StochasticMux)):
        mux = cls(streamers, k, None, mode="exhaustive", random_state=seed)
        expected = sorted((i, j) for i, n in enumerate(lengths) for j in range(n))
        assert sorted(mux) == expected


@pytest.mark.parametrize("mode", ["single_active", "exhaustive"])
def test_a_stream_is_open_once_at_most_without_replacement(muxes, mode):
    opened = collections.Counter()

    def source(i):
        opened[i] += 1
        assert opened[i] == 1
        try:
            while True:
                yield i
        finally:
            opened[i] -= 1

    streamers = [Streamer(source, i) for i in range(6)]
    mux = muxes.StochasticMux(streamers, 4, 2, mode=mode, random_state=0)
    samples = list(mux.iterate(300))
    assert set(samples) == set(range(6))


def test_no_more_than_n_active_streams_are_open(muxes):
    opened = set()
    most = 0

    def source(i):
        nonlocal most
        opened.add(i)
        most = max(most, len(opened))
        try:
            while True:
                yield i
        finally:
            opened.remove(i)

    streamers = [Streamer(source, i) for i in range(50)]
    mux = muxes.StochasticMux(streamers, 5, 4, mode="single_active", random_state=0)
    assert len(list(mux.iterate(1000))) == 1000
    assert most == 5


@pytest.mark.parametrize("rate", [1, 2.5, np.float32(3)])
def test_a_constant_count_is_the_rate_rounded_up(muxes, rate):
    mux = muxes.StochasticMux(
        [Streamer(forever, i) for i in range(9)], 3, rate, mode="exhaustive", dist="constant"
    )
    samples = collections.Counter(mux)
    assert samples == dict.fromkeys(range(9), int(np.ceil(rate)))


def test_weights_act_within_the_active_set(muxes):
    mux = muxes.StochasticMux(letters("ab"), 2, None, [3, 1], "single_active", random_state=0)
    share = collections.Counter(mux.iterate(4000))["a"] / 4000
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)


def test_pruning_leaves_empty_streams_out_and_can_be_turned_off(muxes):
    starts = collections.Counter()

    def source(i):
        starts[i] += 1
        if i:
            yield i

    streamers = [Streamer(source, i) for i in range(3)]
    list(muxes.StochasticMux(streamers, 1, 1, random_state=0).iterate(200))
    assert starts[0] == 1
    starts.clear()
    mux = muxes.StochasticMux(streamers, 1, 1, prune_empty_streams=False, random_state=0)
    list(mux.iterate(200))
    assert starts[0] > 10


def test_weights_of_other_float_types_are_kept_in_theirs(muxes):
    weights = np.array([1, 2, 3], dtype=np.float32)
    mux = muxes.StochasticMux(letters("abc"), 2, 4, weights, random_state=0)
    assert mux.weights.dtype == np.float32
    assert len(list(mux.iterate(50))) == 50


# ------------------------------------------------------------- ShuffledMux, RoundRobin, Chain


def test_a_shuffled_mux_restarts_streams_and_leaves_empty_ones_out(muxes):
    mux = muxes.ShuffledMux([Streamer(count, 2), Streamer(nothing), Streamer("ab")], random_state=0)
    with mux as active:
        samples = list(active.iterate(200))
        assert set(samples) == {0, 1, "a", "b"}
        assert active.stream_weights_[1] == 0
    numbers = [s for s in samples if s in (0, 1)]
    assert numbers == [0, 1] * (len(numbers) // 2) + [0] * (len(numbers) % 2)


def test_a_shuffled_mux_samples_in_proportion_to_the_weights(muxes):
    weights = np.array([0.5, 0.2, 0.2, 0.1])
    mux = muxes.ShuffledMux(letters("abcd"), weights, random_state=0)
    counts = collections.Counter(mux.iterate(5000))
    observed = np.array([counts[letter] for letter in "abcd"])
    # Chi-square with 3 degrees of freedom; a fixed seed, so this cannot fail by chance.
    assert ((observed - 5000 * weights) ** 2 / (5000 * weights)).sum() < 16.3


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_round_robin_takes_turns_and_skips_what_has_ended(lengths):
    streamers = [Streamer([(j, i) for j in range(n)]) for i, n in enumerate(lengths)]
    turns = sorted((j, i) for i, n in enumerate(lengths) for j in range(n))
    for cls in (pescador.RoundRobinMux, with_hooks(pescador.RoundRobinMux)):
        assert list(cls(streamers)) == turns
    if turns:
        assert list(pescador.RoundRobinMux(streamers, "cycle").iterate(40)) == (turns * 40)[:40]


def test_a_permuted_cycle_changes_the_order_after_the_first_round(muxes):
    mux = muxes.RoundRobinMux([[i] for i in range(8)], "permuted_cycle", random_state=0)
    samples = list(mux.iterate(32))
    rounds = [samples[i : i + 8] for i in range(0, 32, 8)]
    assert rounds[0] == list(range(8))
    assert all(sorted(one) == list(range(8)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 4


def test_a_chain_runs_one_stream_after_the_other(muxes):
    assert list(muxes.ChainMux(["ab", "", "c"])) == ["a", "b", "c"]
    assert "".join(muxes.ChainMux(["ab", "c"], "cycle").iterate(8)) == "abcabcab"
    assert list(muxes.ChainMux([])) == []


def make_streamers(n):
    """A generator function of streamers."""
    for i in range(n):
        yield Streamer(count, i)


def three_streamers():
    yield from make_streamers(3)


def lists():
    yield [1, 2]
    yield "a"


def test_a_chain_that_an_earlier_release_pickled_runs_and_subclasses_read_its_generator():
    class EverySecond(pescador.ChainMux):
        def _new_stream(self, idx=None):
            next(self.stream_generator_, None)
            super()._new_stream(idx)

    for cls, expected in ((pescador.ChainMux, "abcd"), (EverySecond, "bd")):
        mux = cls(list("abcd"))
        assert mux.stream_generator_ is mux.chain_generator_ is None
        state = {**mux.__getstate__(), "chain_generator_": None}
        state.pop("stream_generator_", None)
        old = cls.__new__(cls)
        old.__setstate__(state)
        assert "".join(old) == expected


def test_a_chain_takes_generators_and_generator_functions_of_streamers(muxes):
    assert list(muxes.ChainMux(make_streamers(3))) == [0, 0, 1]
    assert list(muxes.ChainMux(three_streamers)) == [0, 0, 1]
    assert list(muxes.ChainMux(three_streamers, "cycle").iterate(7)) == [0, 0, 1, 0, 0, 1, 0]
    assert list(muxes.ChainMux(lists)) == [1, 2, "a"]


def test_a_chain_starts_streamers_only_when_they_are_due(muxes):
    made = []

    def streamers():
        for i in range(5):
            made.append(i)
            yield Streamer(count, 2)

    iteration = muxes.ChainMux(streamers).iterate()
    next(iteration), next(iteration)
    assert made == [0]
    next(iteration)
    assert made == [0, 1]


# ----------------------------------------------------------------------------------- hooks


def test_each_hook_of_a_subclass_is_called():
    calls = collections.Counter()

    def spy(name):
        def hook(self, *args):
            calls[name] += 1
            return getattr(super(Spied, self), name)(*args)

        return hook

    names = (
        "_activate",
        "_streamers_available",
        "_next_sample_index",
        "_on_stream_exhausted",
        "_new_stream",
        "_replace_stream",
    )
    Spied = type("Spied", (pescador.StochasticMux,), {})
    for name in names:
        setattr(Spied, name, spy(name))
    list(Spied(letters("abc"), 2, 3, random_state=0).iterate(50))
    assert all(calls[name] for name in names)


class Alternate(pescador.BaseMux):
    """A mux of its own making, as the documentation of the hooks describes it."""

    def _reset(self):
        self.streams_ = None
        self.stream_counts_ = None

    def _activate(self):
        self.streams_ = [None] * self.n_streams
        self.stream_counts_ = np.zeros(self.n_streams, dtype=int)
        for idx in range(self.n_streams):
            self._new_stream(idx)

    def _new_stream(self, idx):
        self.streams_[idx] = self.streamers[idx].iterate()

    def _replace_stream(self, idx):
        self._new_stream(idx)

    def _next_sample_index(self):
        return int(self.stream_counts_.argmin())


def test_a_mux_can_be_written_on_the_base_class():
    mux = Alternate([Streamer(count, 2), Streamer("ab")])
    assert list(mux.iterate(6)) == [0, "a", 1, "b", 0, "a"]
    assert list(pescador.ChainMux([mux]).iterate(3)) == [0, "a", 1]


def test_the_base_class_by_itself_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="_activate"):
        next(pescador.BaseMux(["a"]).iterate())


class Preferring(pescador.StochasticMux):
    """Steers which streams are opened, which weights cannot."""

    def _activate(self):
        super()._activate()
        self.distribution_ = np.array([0.0, 0.0, 1.0])


def test_a_hook_may_set_what_an_engine_would_own():
    mux = Preferring(letters("abc"), 1, 1, dist="constant", random_state=0)
    assert set(list(mux.iterate(20))[1:]) == {"c"}


# --------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["StochasticMux", "ShuffledMux", "RoundRobinMux"])
@pytest.mark.parametrize("streamers", [[], (), iter(()), {}])
def test_an_empty_collection_is_refused(name, streamers):
    with pytest.raises(ArgumentError, match="streamers="):
        make(name, streamers)


@pytest.mark.parametrize("name", ["StochasticMux", "ShuffledMux", "RoundRobinMux", "ChainMux"])
@pytest.mark.parametrize("streamers", [None, 3, len])
def test_a_pool_that_is_no_collection_is_refused(name, streamers):
    with pytest.raises(ArgumentError, match="streamers="):
        make(name, streamers)


def test_a_member_that_is_no_stream_is_refused_with_its_place():
    with pytest.raises(ArgumentError, match=r"streamers\[1\]"):
        pescador.ShuffledMux(["abc", 3])


def make(name, streamers, **kwargs):
    required = {"n_active": 2, "rate": 4} if name == "StochasticMux" else {}
    return getattr(pescador, name)(streamers, **(required | kwargs))


@pytest.mark.parametrize("name", ["StochasticMux", "ShuffledMux"])
@pytest.mark.parametrize(
    "weights",
    [
        [1, 2],
        [1, 2, 3, 4],
        [0, 0, 0],
        [1, -1, 1],
        [1, np.nan, 1],
        [1, np.inf, 1],
        "abc",
        [[1, 2, 3]],
        [1j, 1, 1],
        [None, 1, 1],
        [1e308, 1e308, 1e308],
        object(),
    ],
)
def test_bad_weights_are_refused(name, weights):
    with pytest.raises(ArgumentError, match="weights"):
        make(name, letters("abc"), weights=weights)


@pytest.mark.parametrize("name", ["StochasticMux", "ShuffledMux"])
@pytest.mark.parametrize(
    "weights",
    [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), np.array([1.0, 2, 3]), np.array([1, 1, 1], bool)],
)
def test_weights_of_any_kind_are_normalised_and_left_alone(name, weights):
    before = copy.deepcopy(weights)
    mux = make(name, letters("abc"), weights=weights)
    assert mux.weights.sum() == pytest.approx(1)
    assert np.array_equal(weights, before)
    assert len(list(mux.iterate(10))) == 10


@pytest.mark.parametrize("n_active", [0, -1, 1.5, 2.0, "2", None, True, [1]])
def test_a_bad_n_active_is_refused(n_active):
    with pytest.raises(ArgumentError, match="n_active="):
        make("StochasticMux", letters("abc"), n_active=n_active)


@pytest.mark.parametrize("mode", ["single_active", "exhaustive"])
def test_an_active_set_larger_than_the_pool_is_refused_without_replacement(mode):
    with pytest.raises(ArgumentError, match="n_active=4"):
        make("StochasticMux", letters("abc"), n_active=4, mode=mode)
    assert len(list(make("StochasticMux", letters("abc"), n_active=9).iterate(50))) == 50


@pytest.mark.parametrize("rate", [0, -1, np.nan, "8", 1j, True, [2]])
@pytest.mark.parametrize("dist", DISTS)
def test_a_bad_rate_is_refused(rate, dist):
    with pytest.raises(ArgumentError, match="rate="):
        make("StochasticMux", letters("abc"), rate=rate, dist=dist)


def test_an_infinite_rate_is_for_constant_counts_only():
    for dist in ("binomial", "poisson"):
        with pytest.raises(ArgumentError, match="rate=inf"):
            make("StochasticMux", letters("abc"), rate=np.inf, dist=dist)
    mux = make("StochasticMux", ["ab", "cd"], rate=np.inf, dist="constant", mode="exhaustive")
    assert sorted(mux) == ["a", "b", "c", "d"]


SPOILT = [
    ("StochasticMux", "n_active", [0, 1.5, "2", None, True, 2**70]),
    (
        "StochasticMux",
        "rate",
        [0, -1, np.nan, "8", 1j, 0.5, np.inf, 10**400, np.timedelta64(5, "s")],
    ),
    ("StochasticMux", "mode", ["both", None]),
    ("StochasticMux", "dist", ["gaussian", 3]),
    ("StochasticMux", "prune_empty_streams", ["no", None, 1]),
    ("RoundRobinMux", "mode", ["both", None]),
    ("ChainMux", "mode", ["permuted_cycle", None]),
    *[
        (name, "weights", [[1, 2], [0, 0, 0], [1, -1, 1], [1, np.nan, 1], [[1, 2, 3]], "abc"])
        for name in ("StochasticMux", "ShuffledMux")
    ],
    *[
        (name, "streamers", [["abc", 3, "d"], 3])
        for name in ("StochasticMux", "ShuffledMux", "RoundRobinMux", "ChainMux")
    ],
]


@pytest.mark.parametrize(("name", "attribute", "values"), SPOILT)
def test_what_is_assigned_after_construction_is_refused_as_it_is_there(
    muxes, name, attribute, values
):
    for value in values:
        arguments = {"streamers": letters("abc")}
        if name == "StochasticMux":
            arguments |= {"n_active": 2, "rate": 4, "mode": "exhaustive"}
        mux = getattr(muxes, name)(**arguments)
        setattr(mux, attribute, value)
        with pytest.raises(ArgumentError) as late:
            list(mux.iterate(3))
        with pytest.raises(ArgumentError) as early:
            getattr(pescador, name)(**(arguments | {attribute: value}))
        assert str(late.value).split(" must ")[0] == str(early.value).split(" must ")[0]
        assert mux.active == 0


@pytest.mark.filterwarnings("ignore:Mux is deprecated")
@pytest.mark.parametrize(
    ("attribute", "value"),
    [("k", 0), ("rate", 0), ("with_replacement", 1), ("revive", None), ("weights", [-1, 1, 1])],
)
def test_what_is_assigned_to_an_old_mux_is_refused_as_at_construction(attribute, value):
    mux = pescador.Mux(letters("abc"), 2)
    setattr(mux, attribute, value)
    with pytest.raises(ArgumentError, match=attribute):
        next(mux.iterate())


@pytest.mark.filterwarnings("ignore:Mux is deprecated")
def test_what_is_assigned_to_an_old_mux_takes_effect():
    mux = pescador.Mux(["ab", "cd", "ef"], 1, None)
    mux.k, mux.with_replacement = 3, False
    assert sorted(mux) == list("abcdef")


def test_weights_that_were_written_to_are_refused_at_activation(muxes):
    for mux in (
        muxes.ShuffledMux(letters("abc")),
        *[muxes.StochasticMux(letters("abc"), 2, 1e6, dist=dist) for dist in DISTS],
    ):
        mux.weights[1] = -0.1
        with pytest.raises(ArgumentError, match=r"weights\[1\]"):
            next(mux.iterate())


def test_masked_weights_are_refused():
    masked = np.ma.masked_array([1.0, 5.0, 1.0], mask=[False, True, False])
    for name in ("StochasticMux", "ShuffledMux"):
        with pytest.raises(ArgumentError, match="masked"):
            make(name, letters("abc"), weights=masked)
        mux = make(name, letters("abc"))
        mux.weights = masked
        with pytest.raises(ArgumentError, match="masked"):
            next(mux.iterate())


def test_iterables_that_were_put_into_a_pool_are_made_streamers(muxes):
    for mux in all_kinds(muxes, letters("abc"), seed=0):
        mux.streamers = ["x" * 50, "y" * 50, "z" * 50]
        assert set(mux.iterate(20)) <= set("xyz")


@pytest.mark.parametrize("rng", [None, 3, "seed"])
def test_a_generator_that_cannot_choose_is_refused(muxes, rng):
    streamers = letters("abc")
    for mux in (
        muxes.ShuffledMux(streamers),
        muxes.StochasticMux(streamers, 2, 3),
        muxes.RoundRobinMux(streamers, "permuted_cycle"),
    ):
        mux.rng = rng
        with pytest.raises(ArgumentError, match="rng="):
            next(mux.iterate())


@pytest.mark.parametrize("n_active", [2**40, 2**62, 2**63, 10**30])
def test_more_open_streams_than_memory_holds_are_refused(muxes, n_active):
    mux = muxes.StochasticMux(letters("abc"), n_active, 4)
    with pytest.raises(ArgumentError, match="n_active="):
        next(mux.iterate())


@pytest.mark.parametrize("rate", [1e15, 2**60, 2**63, 10**19, 1e300, 10**400])
def test_a_rate_of_any_size_works_or_is_refused(muxes, rate):
    def take(dist):
        return list(muxes.StochasticMux(letters("abc"), 2, rate, dist=dist).iterate(20))

    assert len(take("constant")) == 20
    if rate < 1e18:
        assert len(take("poisson")) == 20
    elif rate >= 2**63:
        for dist in ("poisson", "binomial"):
            with pytest.raises(ArgumentError, match="rate="):
                take(dist)


def test_any_number_of_samples_may_be_asked_for(muxes):
    for max_iter in (2**63, 2**64, 10**400, 1e300, float("inf")):
        assert len(list(muxes.ChainMux(["abc"]).iterate(max_iter))) == 3
        assert len(list(Streamer("abc").iterate(max_iter))) == 3
        assert len(list(itertools.islice(Streamer("abc").cycle(max_iter), 7))) == 7


def test_a_rate_below_one_is_for_constant_counts_only():
    for dist in ("binomial", "poisson"):
        with pytest.raises(ArgumentError, match=rf"rate=0\.5 .* dist='{dist}'; dist='constant' "):
            make("StochasticMux", letters("abc"), rate=0.5, dist=dist)
    assert (
        len(list(make("StochasticMux", letters("abc"), rate=0.5, dist="constant").iterate(9))) == 9
    )


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("StochasticMux", "mode", "single"),
        ("StochasticMux", "mode", None),
        ("StochasticMux", "dist", "gaussian"),
        ("StochasticMux", "dist", 3),
        ("StochasticMux", "prune_empty_streams", "no"),
        ("RoundRobinMux", "mode", "with_replacement"),
        ("ChainMux", "mode", "permuted_cycle"),
        *[
            (name, "random_state", state)
            for name in ("StochasticMux", "ShuffledMux", "RoundRobinMux", "ChainMux")
            for state in (-1, 2**32, "seed", 1.5, [1])
        ],
    ],
)
def test_other_bad_arguments_are_refused_by_name(name, argument, value):
    with pytest.raises(ArgumentError, match=f"{argument}="):
        make(name, letters("abc"), **{argument: value})


# ------------------------------------------------- what becomes of streams after an error


class Open:
    """Sources that note how many of them are open."""

    def __init__(self):
        self.n = 0

    def __deepcopy__(self, memo):
        return self

    def source(self, bad):
        self.n += 1
        try:
            for i in range(10**9):
                if bad and i == 2:
                    raise Failure
                yield {"x": i}
        finally:
            self.n -= 1

    def streams(self):
        return [Streamer(self.source, bad) for bad in (False, True, False)]


@pytest.mark.filterwarnings("ignore:Mux is deprecated")
def test_a_mux_that_fails_lets_go_of_its_streams_while_the_error_is_kept(muxes):
    sources = Open()

    def chain():
        sources.n += 1
        try:
            yield Streamer(sources.source, bad=True)
        finally:
            sources.n -= 1

    mixed = [
        *[
            muxes.StochasticMux(sources.streams(), 3, rate, mode=mode, random_state=0)
            for mode in MODES
            for rate in (50, None)
        ],
        muxes.ShuffledMux(sources.streams(), random_state=0),
        muxes.RoundRobinMux(sources.streams(), "permuted_cycle", random_state=0),
        muxes.ChainMux(chain, "cycle"),
        pescador.Mux(sources.streams(), 3, random_state=0),
        muxes.RoundRobinMux([muxes.ShuffledMux(sources.streams()) for _ in range(2)]),
        muxes.ShuffledMux([Streamer(pescador.cache, s, 2) for s in sources.streams()]),
    ]
    for mux in mixed:
        for stream in (mux, mux.cycle(), Streamer(pescador.tuples, mux, "x")):
            with pytest.raises(Failure) as kept:
                list(stream)
            assert sources.n == 0
            del kept


@pytest.mark.parametrize(
    "function",
    [
        lambda stream: pescador.tuples(stream, "y"),
        lambda stream: pescador.keras_tuples(stream, "y"),
        lambda stream: pescador.buffer_stream(stream, 5, allocator=lambda *_: {}["y"]),
        lambda stream: Streamer(pescador.tuples, stream, "y").iterate(),
        lambda stream: Streamer(pescador.keras_tuples, stream, "y").iterate(),
        lambda stream: pescador.tuples(stream.iterate(), "y"),
    ],
)
def test_a_map_that_fails_lets_go_of_the_mux_below_while_the_error_is_kept(muxes, function):
    sources = Open()
    with pytest.raises(KeyError) as kept:
        list(function(muxes.ShuffledMux(sources.streams(), random_state=0)))
    assert sources.n == 0
    del kept


def test_an_error_thrown_into_a_mux_lets_go_of_its_streams(muxes):
    sources = Open()
    mux = muxes.RoundRobinMux(sources.streams())
    for stream in (mux.iterate(), mux.cycle(), Streamer(pescador.tuples, mux, "x").iterate()):
        next(stream), next(stream)
        assert sources.n == 2
        with pytest.raises(Failure) as kept:
            stream.throw(Failure())
        assert sources.n == 0
        del kept


def test_a_nested_mux_that_failed_is_over_for_the_activated_copy_around_it(muxes):
    inner = muxes.ShuffledMux([Streamer(failing, 2)])
    with muxes.RoundRobinMux([inner, Streamer("abcd")]) as active:
        samples = []
        for _ in range(5):
            try:
                samples.extend(active.iterate())
            except Failure:
                samples.append("!")
    assert samples == [0, "a", 1, "b", "!", "c", "d"]


# ------------------------------------------------------------------------ loops and signals


class Alarm(Exception):
    pass


def interrupted(iteration, after=0.05):
    """Interrupt a loop that yields nothing, soon after it has begun."""

    def on_alarm(*_):
        raise Alarm

    before = signal.signal(signal.SIGVTALRM, on_alarm)
    # Once more later: Python ignores what is raised while it collects garbage.
    signal.setitimer(signal.ITIMER_VIRTUAL, after, 10)
    try:
        with pytest.raises(Alarm):
            list(iteration)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def with_pool(mux, n):
    """Give a mux n streams without samples, and without any Python code."""
    mux.streamers = [Streamer(())] * n
    if hasattr(mux, "weights"):
        mux.weights = np.ones(n)
    return mux


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_looking_for_a_stream_with_samples_can_be_interrupted():
    n = 2_000_000
    with with_pool(pescador.ShuffledMux(["a"]), n) as active:
        interrupted(active.iterate())
        assert active.weight_norm_ > 0
    with with_pool(pescador.StochasticMux(["a"], 1, None), n) as active:
        interrupted(active.iterate())
        assert active.valid_streams_.any()
    with with_pool(pescador.RoundRobinMux(["a"]), n) as active:
        interrupted(active.iterate())
        assert active.stream_idxs_.max() >= 0
    with with_pool(pescador.ChainMux(["a"]), n) as active:
        interrupted(active.iterate())
        assert active.stream_generator_.__length_hint__() > 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_loop_over_empty_streams_can_be_interrupted(muxes):
    pool = [Streamer(())] * 10_000
    interrupted(muxes.RoundRobinMux(pool, "cycle").iterate())
    interrupted(muxes.ChainMux(pool, "cycle").iterate())
    interrupted(muxes.ChainMux(pool).cycle())
    interrupted(muxes.StochasticMux(pool, 1, None, prune_empty_streams=False).iterate())


@pytest.mark.parametrize("weights", ["alike", "mixed"])
def test_a_large_pool_of_empty_streams_is_no_quadratic_search(weights):
    n = 200_000
    mux = with_pool(pescador.ShuffledMux(["a"]), n)
    if weights == "mixed":
        mux.weights = np.random.RandomState(0).uniform(1, 2, n)
    # A pass over all of them for each would take longer than a test may.
    assert list(mux) == []


@pytest.mark.parametrize("mode", ["exhaustive", "with_replacement", "single_active"])
def test_streams_found_empty_leave_the_pool_in_a_few_steps_each(mode):
    # So many that steps over all of them would show, however fast NumPy's rounding settles.
    n = 80_000
    empty, some = Streamer(()), Streamer(range(5))
    before = _choice.nodes_summed()
    assert list(pescador.StochasticMux([empty] * n, 100, 8, mode=mode, random_state=0)) == []
    # Among others, too.
    mux = pescador.StochasticMux([empty, some] * (n // 2), 100, 1, mode=mode, random_state=0)
    assert len(list(mux.iterate(50_000))) == (n // 2 if mode == "exhaustive" else 50_000)
    assert _choice.nodes_summed() - before < 5 * n * np.log2(n)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_look_at_the_distribution_of_a_large_pool_can_be_interrupted():
    n = 1_000_000
    pool = [Streamer(())] * n
    mux = pescador.StochasticMux(pool, n // 2, None, mode="exhaustive", random_state=0)
    with mux as active:
        interrupted((active.distribution_ for _ in range(1)), 0.001)
        before = _choice.nodes_summed()
        p = active.distribution_
        assert _choice.nodes_summed() > before
    with mux as active:
        assert (active.distribution_ == p).all()


def test_muxes_that_share_muxes_are_each_looked_at_once():
    mux = pescador.ShuffledMux([Streamer(data_forever)], random_state=np.random.RandomState(0))
    for _ in range(100):
        mux = pescador.ShuffledMux([mux, mux], random_state=np.random.RandomState(0))
    expected = next(mux.iterate())
    for other in (copy.deepcopy(mux), pickle.loads(pickle.dumps(mux))):
        assert next(other.iterate()) == expected
    assert next(Streamer(pescador.tuples, mux, "x").iterate()) == (expected["x"],)
    assert next(mux.cycle(1)) == expected
    assert next(with_hooks(pescador.ChainMux)([mux]).iterate()) == expected
    for text in (repr(mux), str(mux), mux._repr_html_()):
        assert len(text) < 20_000


def data_forever():
    while True:
        yield {"x": 1}


# --------------------------------------------------------- generators of the caller's making


def wrong(kind, method, value):
    """A generator of a kind of NumPy's whose method gives a value of its own."""

    def draw(self, *args, **kwargs):
        return value(*args) if callable(value) else value

    cls = type("Wrong", (kind,), {method: draw, "__deepcopy__": lambda self, memo: self})
    return cls(np.random.MT19937(0))


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.Generator])
@pytest.mark.parametrize("value", [-1, 3, 10**9, 2**70, None, 1.5, "0", [0], np.array([0, 1])])
def test_what_is_no_index_is_refused_from_a_generator_of_the_callers(kind, value):
    streamers = letters("abc")
    rng = wrong(kind, "choice", value)
    for mux in (
        pescador.ShuffledMux(streamers, random_state=rng),
        pescador.StochasticMux(streamers, 3, 2, dist="constant", random_state=rng),
    ):
        with pytest.raises(PescadorError, match="choose"):
            list(mux.iterate(5))
    rng = wrong(kind, "randint" if kind is np.random.RandomState else "integers", value)
    with pytest.raises(PescadorError, match="choose"):
        list(pescador.cache(range(100), 3, 0.5, random_state=rng))


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.Generator])
@pytest.mark.parametrize("fill", [-1, 3, 10**9])
def test_what_is_no_permutation_is_refused_from_a_generator_of_the_callers(kind, fill):
    rng = wrong(kind, "shuffle", lambda order: order.fill(fill))
    with pytest.raises(PescadorError, match="permute"):
        list(pescador.RoundRobinMux(["a", "b", "c"], "permuted_cycle", rng).iterate(9))


@pytest.mark.parametrize("dist", ["binomial", "poisson"])
@pytest.mark.parametrize("value", [-1, 2**63, None, 1.5])
def test_what_is_no_count_is_refused_from_a_generator_of_the_callers(dist, value):
    rng = wrong(np.random.RandomState, dist, value)
    with pytest.raises(PescadorError, match="draw"):
        list(pescador.StochasticMux(letters("abc"), 2, 5, dist=dist, random_state=rng).iterate(5))


class BitGen(ctypes.Structure):
    """``bitgen_t`` of numpy/random/bitgen.h."""

    _fields_ = [
        ("state", ctypes.c_void_p),
        ("next_uint64", ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)),
        ("next_uint32", ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)),
        ("next_double", ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p)),
        ("next_raw", ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)),
    ]


class Constant(np.random.MT19937):
    """A bit generator that gives one double for ever."""

    def __init__(self, double):
        super().__init__(0)
        types = [kind for _, kind in BitGen._fields_[1:]]
        functions = [lambda _: 2**64 - 1, lambda _: 2**32 - 1, lambda _: double, lambda _: 0]
        self.kept = BitGen(None, *[kind(f) for kind, f in zip(types, functions, strict=True)])
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = (
            ctypes.py_object,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        )
        self.double, self.own = double, new(ctypes.addressof(self.kept), b"BitGenerator", None)

    @property
    def capsule(self):
        return self.own

    def __deepcopy__(self, memo):
        return Constant(self.double)


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.Generator])
@pytest.mark.parametrize("double", [1.0, 1.5, -0.5, float("nan"), float("inf")])
def test_a_bit_generator_that_gives_no_double_below_one_is_refused(kind, double):
    rng = kind(Constant(double))
    streamers = letters("abc")
    for weights in (None, [1, 2, 3]):
        for mux in (
            pescador.ShuffledMux(streamers, weights, random_state=rng),
            *[
                pescador.StochasticMux(streamers, 2, 4, weights, mode, dist=dist, random_state=rng)
                for mode in MODES
                for dist in ("constant", "poisson")
            ],
        ):
            with pytest.raises(PescadorError):
                list(mux.iterate(20))


# ------------------------------------------------------------------------------------- Mux


def test_mux_is_deprecated_and_names_its_replacement():
    with pytest.warns(DeprecationWarning, match="StochasticMux") as caught:
        mux = pescador.Mux(letters("abc"), 2, random_state=0)
    assert caught[0].filename == __file__
    assert len(list(mux.iterate(30))) == 30


@pytest.mark.filterwarnings("ignore:Mux is deprecated")
def test_mux_translates_its_switches_into_modes():
    streamers = letters("abc")
    assert pescador.Mux(streamers, 2).mode == "with_replacement"
    assert pescador.Mux(streamers, 2, with_replacement=False).mode == "exhaustive"
    assert pescador.Mux(streamers, 2, with_replacement=False, revive=True).mode == "single_active"
    assert pescador.Mux(streamers, 2).rate == 256.0
    assert pescador.Mux(streamers, 2, None).rate is None
    assert sorted(pescador.Mux(["a", "b", "c"], 5, None, with_replacement=False)) == ["a", "b", "c"]


@pytest.mark.filterwarnings("ignore:Mux is deprecated")
@pytest.mark.parametrize(
    ("argument", "value"), [("k", 0), ("rate", 0), ("with_replacement", 1), ("revive", None)]
)
def test_bad_arguments_of_mux_are_refused_by_name(argument, value):
    with pytest.raises(ArgumentError, match=f"{argument}="):
        pescador.Mux(letters("abc"), **({"k": 2} | {argument: value}))


def test_threads_that_iterate_a_mux_each_get_all_of_its_samples(muxes):
    mux = muxes.ShuffledMux(
        [Streamer(count, 500, start=1000 * i) for i in range(8)], random_state=0
    )
    expected = list(mux(max_iter=2000))
    with ThreadPoolExecutor(4) as pool:
        for samples in pool.map(lambda _: list(mux(max_iter=2000)), range(16)):
            assert samples == expected
    assert mux.active == 0


def test_a_thread_that_disturbs_another_in_one_iteration_gets_an_error_and_takes_nothing():
    inside, leave = threading.Event(), threading.Event()

    def waits():
        inside.set()
        leave.wait(30)
        yield from range(3)

    stream = pescador.ShuffledMux([Streamer(waits)], random_state=0).iterate()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, stream)
        assert inside.wait(30)
        with pytest.raises(ValueError, match="already executing"):
            next(stream)
        leave.set()
        assert first.result() == 0
    assert list(itertools.islice(stream, 2)) == [1, 2]
