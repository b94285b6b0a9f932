"""Activation isolates: what is shared, what is copied, and what is mapped instead."""

import collections
import copy
import csv
import ctypes
import dataclasses
import datetime
import functools
import gc
import io
import itertools
import pathlib
import pickle
import subprocess
import sys
import textwrap
import types
import typing
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy._core._multiarray_umath import _ARRAY_API

import pescador
from pescador import Streamer, _core, _snapshots
from streams import data, forever, write_into

linux = pytest.mark.skipif(sys.platform != "linux", reason="maps are for Linux")


@pytest.fixture
def all_large():
    """Arrays of any size are taken for large."""
    before = _snapshots.set_large(1)
    yield
    _snapshots.set_large(before)


def copies_of(value, n=3):
    """What n streams of one activation of a mux are given for one value."""
    return list(pescador.RoundRobinMux([Streamer(forever, value)] * n).iterate(n))


def lone_copies_of(value, n=3):
    """What n iterations of a streamer are given."""
    return [next(Streamer(forever, value).iterate()) for _ in range(n)]


def assert_alike(ours, theirs, seen=None):
    """Assert that two values are equal, laid out alike, and hold the same things twice."""
    seen = {} if seen is None else seen
    assert type(ours) is type(theirs)
    if isinstance(ours, list | dict | set | bytearray | np.ndarray):
        assert seen.setdefault(id(ours), id(theirs)) == id(theirs)
        assert seen.setdefault(id(theirs), id(ours)) == id(ours)
    if isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert (ours.shape, ours.strides) == (theirs.shape, theirs.strides)
        assert repr(ours.flags) == repr(theirs.flags)
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_alike(*pair, seen)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_alike(ours[key], theirs[key], seen)
    else:
        assert ours == theirs


# ----------------------------------------------------------------------- any nest, any writes

DTYPES = ["i1", ">i4", "f8", [("a", "u2"), ("b", ">f4")]]


@st.composite
def arrays(draw):
    base = np.arange(24).astype(np.dtype(draw(st.sampled_from(DTYPES))))
    base = base.reshape(2, 3, 4, order=draw(st.sampled_from("CF")))
    view = draw(
        st.sampled_from(
            [
                lambda a: a,
                lambda a: a.T,
                lambda a: a[::-1],
                lambda a: a[:, 1:, ::2],
                lambda a: a.transpose(1, 0, 2),
                lambda a: a[..., 0],
                lambda a: a[1, 1, 1:1],
                lambda a: np.broadcast_to(a[0], (3, 3, 4)),
                lambda a: a[0, 0, 0, ...],
            ]
        )
    )
    return base, view(base)


@st.composite
def nests(draw):
    """A list of values that hold each other, views of arrays among them."""
    things = [draw(st.integers()), draw(st.text()), (1, "a"), b"b", None]
    for _ in range(draw(st.integers(1, 3))):
        things += draw(arrays())
    for _ in range(draw(st.integers(0, 6))):
        pick = st.sampled_from(things)
        things.append(
            draw(
                st.one_of(
                    st.lists(pick, max_size=4),
                    st.dictionaries(st.text(max_size=2), pick, max_size=3),
                    st.tuples(pick, pick),
                    st.sets(st.integers(), max_size=3),
                    st.builds(bytearray, st.binary(max_size=3)),
                )
            )
        )
    return things


def write(nest, place, number):
    """Change one thing inside a nest; `place` and `number` say which, and how."""
    thing = nest[place % len(nest)]
    if isinstance(thing, np.ndarray) and thing.flags.writeable and thing.size:
        if number % 3 == 0:
            thing.reshape(-1)[number % thing.size] = thing.flat[0]
        elif number % 3 == 1:
            np.random.default_rng(number).shuffle(thing if thing.ndim else thing[None])
        else:
            thing.view(np.uint8 if thing.itemsize == 1 else thing.dtype)[...] = thing.flat[-1]
        if number % 5 == 0 and thing.flags.owndata and thing.flags.forc:
            thing.resize((thing.size + number % 7,), refcheck=False)
    elif isinstance(thing, list):
        thing.append(number)
    elif isinstance(thing, dict):
        thing["new"] = number
    elif isinstance(thing, set):
        thing.add(number)
    elif isinstance(thing, bytearray):
        thing.append(number % 256)


@pytest.mark.parametrize("start", [copies_of, lone_copies_of])
@given(
    nest=nests(),
    writes=st.lists(
        st.tuples(st.integers(-1, 3), st.integers(0, 20), st.integers(0, 100)), max_size=12
    ),
)
def test_each_activation_sees_what_a_deep_copy_would(start, nest, writes):
    before = _snapshots.set_large(1)
    try:
        pristine = copy.deepcopy(nest)
        ours, theirs = start(nest, 4), [copy.deepcopy(nest) for _ in range(4)]
    finally:
        _snapshots.set_large(before)
    assert_alike(copy.deepcopy(nest), pristine)
    for which, place, number in writes:
        if which < 0:
            # By the caller, which none of them sees.
            write(nest, place, number)
        else:
            write(ours[which], place, number)
            write(theirs[which], place, number)
    for pair in zip(ours, theirs, strict=True):
        assert_alike(*pair)


# ------------------------------------------------------------------------------ large arrays


class Tagged(np.ndarray):
    """A subclass with an attribute of its own."""

    def __array_finalize__(self, obj):
        self.tag = getattr(obj, "tag", None)


def read_only(array):
    array.flags.writeable = False
    return array


def tagged(array):
    array = array.view(Tagged)
    array.tag = "t"
    return array


ARRAYS = {
    "C": lambda: np.arange(24.0).reshape(2, 3, 4),
    "F": lambda: np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "permuted": lambda: np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    "offset": lambda: np.arange(24.0)[5:],
    "strided": lambda: np.arange(24.0)[::5],
    "reversed": lambda: np.arange(24.0).reshape(2, 12)[:, ::-1],
    "broadcast": lambda: np.broadcast_to(np.arange(4.0), (3, 4)),
    "unaligned": lambda: np.frombuffer(bytearray(b"x" * 81), np.uint8)[1:].view(np.float64),
    "zero-dimensional": lambda: np.array(3.0),
    "empty": lambda: np.zeros((0, 3)),
    "read-only": lambda: read_only(np.arange(24.0)),
    "swapped": lambda: np.arange(24, dtype=">i4"),
    "structured": lambda: np.ones(5, [("a", "<i2"), ("b", ">f8", (2,))]),
    "record": lambda: np.rec.array([(1, 2.0), (3, 4.0)]),
    "bool": lambda: np.arange(24) % 2 == 0,
    "text": lambda: np.array(["a", "bcd"]),
    "strings": lambda: np.array(["a", "b" * 100], dtype=np.dtypes.StringDType()),
    "void": lambda: np.ones(3, "V7"),
    "dates": lambda: np.arange(5).astype("M8[D]"),
    "matrix-like": lambda: tagged(np.arange(6.0).reshape(2, 3)),
    "masked": lambda: np.ma.masked_array([1, 2, 3], [0, 1, 0]),
    "objects": lambda: np.array([[1], {"a": 2}, None], dtype=object),
}


if np.__version__.startswith("2.0."):
    # copy.deepcopy of such an array crashes there.
    del ARRAYS["strings"]


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("start", [copies_of, lone_copies_of])
def test_a_copy_of_an_array_is_laid_out_as_a_deep_copy(kind, start, all_large):
    array = ARRAYS[kind]()
    for ours in start(array):
        theirs = copy.deepcopy(array)
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        assert (ours.shape, ours.strides) == (theirs.shape, theirs.strides)
        assert repr(ours.flags) == repr(theirs.flags)
        assert repr(ours) == repr(theirs)
        assert getattr(ours, "tag", None) == getattr(theirs, "tag", None)
        assert not np.shares_memory(ours, array)


@pytest.fixture(scope="module")
def megabyte():
    return np.arange(2**17, dtype=np.float64)


@linux
def test_streams_that_share_a_large_array_map_one_snapshot(megabyte):
    maps, files = _snapshots.in_use()
    mux = pescador.RoundRobinMux([Streamer(forever, megabyte)] * 50, "cycle").iterate()
    inside = [next(mux) for _ in range(50)]
    # The first has a copy.
    assert _snapshots.in_use() == (maps + 49, files + 1)
    inside[7][:] = 0
    assert all(array[-1] == 2**17 - 1 for array in inside if array is not inside[7])
    mux.close()
    del mux
    gc.collect()
    assert _snapshots.in_use() == (maps + 49, files)
    del inside
    assert _snapshots.in_use() == (maps, files)


@linux
def test_an_array_that_one_stream_uses_gets_no_snapshot(megabyte):
    files = _snapshots.in_use()[1]
    streams = [Streamer(forever, megabyte + i) for i in range(5)]
    mux = pescador.RoundRobinMux(streams).iterate()
    assert [next(mux)[0] for _ in streams] == [0, 1, 2, 3, 4]
    assert _snapshots.in_use()[1] == files


def once(array):
    yield array


@linux
def test_snapshots_that_no_open_stream_uses_are_few(all_large):
    files = _snapshots.in_use()[1]
    streams = [Streamer(forever, np.arange(3.0) + i) for i in range(100)]
    mux = pescador.StochasticMux(streams, 5, 2, random_state=0).iterate()
    found = 0
    for _ in range(3000):
        assert next(mux).shape == (3,)
        found = max(found, _snapshots.in_use()[1] - files)
    # There were some, of streams that were open twice, or twice in a short time.
    assert 0 < found <= 5 + 8


@linux
def test_snapshots_that_no_open_stream_uses_are_small():
    held = _snapshots.bytes_held()
    arrays = [np.zeros(24 * 2**20, np.uint8) for _ in range(2)]
    mux = pescador.ChainMux([Streamer(once, array) for array in arrays], "cycle").iterate()
    found = 0
    for _ in range(12):
        next(mux)
        found = max(found, _snapshots.bytes_held() - held)
    assert 0 < found <= (24 + 32) * 2**20
    mux.close()
    assert _snapshots.bytes_held() == held


@linux
def test_arrays_that_were_made_for_one_stream_are_not_held_after_it(all_large):
    seen = []

    def streamers():
        while True:
            array = np.arange(3.0)
            seen.append(weakref.ref(array))
            yield Streamer(once, array)

    mux = pescador.ChainMux(streamers).iterate()
    for _ in range(300):
        next(mux)
    assert sum(array() is not None for array in seen) < 3


def overwrite(array):
    """Write all over an array, then yield for ever."""
    array += 1
    yield from forever(array[0])


@linux
def test_an_array_that_its_streams_write_all_over_is_copied(megabyte):
    maps = _snapshots.in_use()[0]
    for source, most in ((overwrite, 0), (forever, 1)):
        mux = pescador.StochasticMux(
            [Streamer(source, megabyte)], 1, 1, dist="constant", random_state=0
        ).iterate()
        for _ in range(9):
            assert np.max(next(mux)) == (1 if source is overwrite else megabyte[-1])
        assert _snapshots.in_use()[0] == maps + most


@linux
def test_muxes_inside_a_mux_share_its_snapshots(megabyte):
    files = _snapshots.in_use()[1]

    def grow(depth):
        if not depth:
            return Streamer(forever, megabyte)
        return pescador.RoundRobinMux([grow(depth - 1) for _ in range(3)])

    inside = grow(3).iterate()
    assert len({id(next(inside)) for _ in range(27)}) == 27
    assert _snapshots.in_use()[1] == files + 1


def test_an_array_can_be_resized_in_place_and_goes_on(all_large):
    for size in (2, 1000, 100_000, 0):
        for inside in copies_of(np.arange(500.0)):
            inside.resize(size, refcheck=False)
            inside.resize(700, refcheck=False)
            assert inside[: min(size, 500)].tolist() == list(range(min(size, 500)))
            assert not inside[size:].any()
            inside.resize((7, 100), refcheck=False)
            assert inside.flags.owndata


def test_an_array_is_shuffled_sorted_and_viewed_in_place(all_large):
    for inside in copies_of(np.arange(100.0)):
        np.random.default_rng(0).shuffle(inside)
        inside.sort()
        assert (inside == np.arange(100)).all()
        view = inside.reshape(10, 10)[3:5]
        view[:] = -1
        assert (inside[30:50] == -1).all()


def test_an_array_outlives_its_stream_its_mux_and_the_original(all_large):
    original = np.arange(1000.0)
    kept = copies_of(original)
    views = [array[10:20] for array in kept]
    original[:] = 0
    del original, kept
    gc.collect()
    for view in views:
        view += 1
        assert view.tolist() == list(range(11, 21))


def test_an_activated_copy_is_pickled_copied_and_exported(all_large):
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    for inside in copies_of(array):
        assert_alike(copy.deepcopy(inside), array)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert_alike(pickle.loads(pickle.dumps(inside, protocol)).copy("K"), array)
        # As torch takes it, and as a buffer.
        exported, buffer = np.from_dlpack(inside), np.asarray(memoryview(inside))
        del inside
        gc.collect()
        buffer[0, 0] = 9
        assert exported.sum() == array.sum() + 9


def test_an_array_takes_a_new_state_and_new_memory(all_large):
    for inside in copies_of(np.arange(10.0)):
        inside.__setstate__(np.arange(3).__reduce__()[2])
        assert inside.tolist() == [0, 1, 2]


def test_what_the_caller_writes_is_not_seen_by_streams_that_run(all_large):
    array = np.zeros(4)
    mux = pescador.RoundRobinMux([Streamer(write_into, array, 2)] * 3).iterate()
    first = [next(mux) for _ in range(3)]
    array[:] = 9
    assert first == [[0] * 4] * 3
    assert [next(mux) for _ in range(3)] == [[1] * 4] * 3
    # The next iteration starts from what is there now.
    assert copies_of(array)[0].tolist() == [9] * 4


def numpy_memory(index, *types):
    """A function of NumPy's for memory handlers, by its place in the table of the C API."""
    table = ctypes.pythonapi.PyCapsule_GetPointer
    table.restype, table.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    entries = ctypes.cast(table(_ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, *types)(entries[index])


@linux
def test_who_has_numpy_allocate_elsewhere_gets_copies_there(megabyte):
    set_handler, get_handler = numpy_memory(304, ctypes.py_object), numpy_memory(305)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer(get_handler(), b"mem_handler")
    maps = _snapshots.in_use()[0]
    before = set_handler(make(pointer, b"mem_handler", None))
    try:
        inside = copies_of(megabyte)
        assert _snapshots.in_use()[0] == maps
    finally:
        set_handler(before)
    inside += copies_of(megabyte)
    assert _snapshots.in_use()[0] == maps + 2


# --------------------------------------------------------------------- when the system refuses


def run(script, *args):
    """Run a script in a process of its own; return what it printed."""
    head = """
        import gc, os, resource, sys
        import numpy as np
        import pescador
        from pescador import Streamer, _snapshots

        def forever(value):
            while True:
                yield value

        def copies_of(*values, n=3):
            streams = [Streamer(forever, value) for _ in range(n) for value in values]
            return list(pescador.RoundRobinMux(streams).iterate(len(streams)))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
def test_without_descriptors_arrays_are_copied():
    run("""
        arrays = [np.full(2**16, i) for i in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(open(os.devnull))
        except OSError:
            pass
        inside = copies_of(*arrays)
        assert _snapshots.in_use() == (0, 0)
        assert [a[-1] for a in inside] == list(range(20)) * 3
        del taken
        # A quarter of the allowance, while the mux runs.
        streams = [Streamer(forever, array) for _ in range(3) for array in arrays]
        mux = pescador.RoundRobinMux(streams).iterate()
        inside = [next(mux) for _ in streams]
        assert _snapshots.in_use() == (32, 16)
        assert [a[-1] for a in inside] == list(range(20)) * 3
        """)


@linux
def test_without_room_for_the_file_arrays_are_copied():
    run("""
        array = np.arange(2**17)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
        inside = copies_of(array)
        assert _snapshots.in_use() == (0, 0)
        assert all((a == array).all() for a in inside)
        """)


@linux
def test_without_address_space_for_a_map_arrays_are_copied():
    run("""
        import ctypes
        libc = ctypes.CDLL(None)
        # Have malloc keep a heap in which there is room for copies, but not for maps.
        libc.mallopt(-3, 2**30), libc.mallopt(-1, 2**30)
        array = np.arange(2**20)
        room = [np.ones_like(array) for _ in range(6)]
        del room
        copies_of(np.arange(2**16), n=1)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, -1))
        inside = copies_of(array)
        assert _snapshots.in_use() == (0, 0)
        assert len(inside) == 3 and all((a == array).all() for a in inside)
        """)


@linux
def test_without_memory_for_a_copy_there_is_an_error_and_it_passes():
    run("""
        array = np.arange(2**22)
        mux = pescador.RoundRobinMux([Streamer(forever, array)] * 3)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, -1))
        iteration = mux.iterate()
        try:
            next(iteration)
        except MemoryError:
            pass
        else:
            sys.exit("no error")
        assert mux.active == 0
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        assert [a[-1] for a in mux.iterate(3)] == [2**22 - 1] * 3
        """)


@linux
def test_after_a_fork_neither_process_sees_the_others_writes():
    run("""
        array = np.arange(2**17)
        streams = [Streamer(forever, array)] * 4
        mux = pescador.RoundRobinMux(streams, "cycle").iterate()
        inside = [next(mux) for _ in range(3)]
        to_child, to_parent = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            for a in inside:
                a[:] = -1
            inside.append(next(mux))
            os.write(to_parent[1], b"x"), os.read(to_child[0], 1)
            right = all((a == -1).all() for a in inside[:3]) and (inside[3] == array).all()
            del a, inside, mux
            gc.collect()
            os._exit(0 if right and _snapshots.in_use() == (0, 0) else 1)
        os.read(to_parent[0], 1)
        assert all((a == array).all() for a in inside)
        inside.append(next(mux))
        for a in inside:
            a[:] = -2
        os.write(to_child[1], b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert all((a == -2).all() for a in inside)
        assert _snapshots.in_use() == (3, 1)
        """)


@linux
def test_no_descriptor_is_left_to_another_program():
    run("""
        mux = pescador.RoundRobinMux([Streamer(forever, np.arange(2**17))] * 4).iterate()
        inside = [next(mux) for _ in range(4)]
        assert _snapshots.in_use() == (3, 1)
        import subprocess
        listed = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False,
                                capture_output=True, text=True).stdout
        assert "memfd" not in listed
        # Nor are those taken that select can wait for.
        with open(os.devnull) as file:
            assert file.fileno() < 10
        """)


@linux
def test_tens_of_thousands_of_activations_leave_maps_and_descriptors_as_they_were():
    run("""
        def usage():
            gc.collect()
            with open("/proc/self/maps") as maps:
                return len(maps.readlines()), len(os.listdir("/proc/self/fd"))

        array = np.arange(2**16)
        mux = pescador.StochasticMux([Streamer(forever, array)] * 20, 5, 1, dist="constant",
                                     random_state=0)
        list(mux.iterate(1000))
        before = usage()
        assert all(a[0] == 0 for a in mux.iterate(50_000))
        for _ in range(200):
            list(mux.iterate(20))
        after = usage()
        assert after[0] <= before[0] + 8 and after[1] == before[1], (before, after)
        assert _snapshots.in_use() == (0, 0)
        # What is kept is bounded as well.
        with open("/proc/sys/vm/max_map_count") as file:
            most = int(file.read())
        if most < 100_000:
            kept = list(mux.iterate(most // 4 + 500))
            assert _snapshots.in_use()[0] == most // 4
            assert all(a[-1] == 2**16 - 1 for a in kept[::100])
        """)


# ----------------------------------------------------------------------------------- memmaps


@pytest.fixture
def file_of_floats(tmp_path):
    np.arange(1000.0).tofile(tmp_path / "x")
    return tmp_path / "x"


@pytest.mark.parametrize("start", [copies_of, lone_copies_of])
def test_a_read_only_memory_map_is_shared_and_not_read(file_of_floats, start):
    mapped = np.memmap(file_of_floats, np.float64, mode="r")
    for value in (mapped, mapped[3:], np.asarray(mapped), np.asarray(mapped).reshape(10, 100).T):
        for inside in start(value):
            assert type(inside) is type(value)
            assert np.shares_memory(inside, mapped)
            assert not inside.flags.writeable
            assert (inside.shape, inside.strides) == (value.shape, value.strides)
            # Its shape is its own, as are its other attributes.
            assert inside is not value
    assert mapped.mode == start(mapped)[0].mode == "r"


@pytest.mark.parametrize("mode", ["c", "r+", "w+"])
@pytest.mark.parametrize("start", [copies_of, lone_copies_of])
def test_a_memory_map_that_can_be_written_is_copied_with_what_was_written(
    file_of_floats, start, mode, all_large
):
    mapped = np.memmap(file_of_floats, np.float64, mode=mode, shape=(10, 100))
    mapped[3, 5] = -1
    expected = copy.deepcopy(mapped)
    for inside in start(mapped):
        assert_alike(inside, expected)
        assert (inside.mode, inside.filename) == (expected.mode, expected.filename)
        inside[:] = 7
    assert_alike(copy.deepcopy(mapped), expected)


@linux
def test_a_large_memory_map_passed_to_four_streamers_takes_no_memory(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(400 * 2**20)
    printed = run(
        """
        def resident():
            with open("/proc/self/status") as status:
                [line] = [line for line in status if line.startswith("VmRSS")]
            return int(line.split()[1]) * 1024

        def reads(array):
            while True:
                yield array[: 2**20].sum()

        mapped = np.memmap(sys.argv[1], np.uint8, mode="r")
        before = resident()
        list(pescador.ShuffledMux([Streamer(reads, mapped)] * 4).iterate(100))
        list(Streamer(reads, mapped).iterate(5))
        print(resident() - before)
        """,
        tmp_path / "x",
    )
    assert int(printed) < 50 * 2**20


# ------------------------------------------------------------------------------ what is shared


class Point(typing.NamedTuple):
    x: object
    y: object = None

    def total(self):
        return self.x


@dataclasses.dataclass(frozen=True)
class Setting:
    name: str

    @functools.cached_property
    def seen(self):
        return []


class Hooked(collections.namedtuple("Pair", "x y")):
    __slots__ = ()

    def __deepcopy__(self, memo):
        return "hook"


class Zone(datetime.tzinfo):
    offset = datetime.timedelta(0)

    def __repr__(self):
        return "Zone()"

    def utcoffset(self, when):
        return self.offset


@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"bytes",
        3,
        2.5,
        1j,
        True,
        None,
        ...,
        range(3),
        (1, ("a", frozenset({2}))),
        Point(1, Point("a", ())),
        len,
        forever,
        np.float32(1),
        np.dtype("f4"),
        np.dtype(("f4", (2, 3))),
        pathlib.Path("x"),
        datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
        int,
        np,
        np.float64,
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_what_cannot_change_is_shared(value):
    assert _core.isolate(value, {}) is value
    assert _core.isolate([value], {})[0] is value


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.dtype([("a", "f4")]),
        lambda: np.dtype("f4", metadata={"note": []}),
        lambda: np.dtype(([("a", "f4")], 2)),
        lambda: Setting("a"),
        lambda: Point([1]),
        lambda: (1, [2]),
        lambda: frozenset({Setting("a")}),
        lambda: datetime.datetime(2000, 1, 1, tzinfo=Zone()),
        lambda: types.SimpleNamespace(a=1),
        lambda: collections.deque([1]),
        lambda: {1},
        lambda: bytearray(b"a"),
        lambda: np.zeros(2),
        lambda: read_only(np.zeros(2)),
    ],
)
def test_what_somebody_could_change_is_not_shared(make):
    value = make()
    ours = _core.isolate(value, {})
    assert ours is not value
    assert type(ours) is type(value)
    if not isinstance(value, types.SimpleNamespace | np.ndarray):
        assert repr(ours) == repr(copy.deepcopy(value))


def test_a_named_tuple_with_a_hook_has_it_called():
    assert _core.isolate(Hooked(1, 2), {}) == "hook"


def test_an_array_of_bytes_shares_them_and_one_that_owns_its_memory_is_copied():
    text = b"12345678" * 8
    fixed = np.frombuffer(text, np.int64)
    for value in (fixed, fixed[2:], fixed.reshape(2, 4).T):
        for inside in copies_of(value):
            assert inside is not value
            assert np.shares_memory(inside, fixed)
            assert not inside.flags.writeable
    for value in (
        read_only(np.arange(4)),
        read_only(np.arange(4)[:]),
        np.frombuffer(bytearray(text)),
        read_only(np.frombuffer(bytearray(text))),
        np.broadcast_to(np.arange(4), (3, 4)),
    ):
        for inside in copies_of(value):
            assert not np.shares_memory(inside, value)
            assert inside.flags.writeable


# -------------------------------------------------------------------- what copy.deepcopy does


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary() | hnp.arrays(np.int8, 3),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    )
)
def test_isolating_gives_what_a_deep_copy_gives(value):
    ours, theirs = _core.isolate(value, {}), copy.deepcopy(value)
    assert repr(ours) == repr(theirs)
    assert type(ours) is type(theirs)


@given(st.lists(st.integers() | st.text() | st.floats(allow_nan=False)), st.integers(0, 10))
def test_a_copy_of_a_set_has_the_order_of_a_deep_copy(items, n):
    value = set(items)
    for item in items[:n]:
        value.discard(item)
    assert list(_core.isolate(value, {})) == list(copy.deepcopy(value))


def test_isolating_keeps_aliases_and_cycles():
    inner = [1]
    outer = [inner, (inner, {"k": inner})]
    outer.append(outer)
    result = _core.isolate(outer, {})
    assert result is not outer
    assert result[2] is result
    assert result[1][0] is result[0] is result[1][1]["k"]
    assert result[0] is not inner
    loop = ([],)
    loop[0].append(loop)
    ours = _core.isolate(loop, {})
    assert ours[0][0] is ours
    assert ours is not loop


def test_isolating_a_subclass_of_a_container_is_left_to_copy():
    class Tagged(list):
        pass

    value = Tagged([[1]])
    value.tag = "t"
    result = _core.isolate(value, {})
    assert type(result) is Tagged
    assert result.tag == "t"
    assert result[0] is not value[0]


class Counter:
    """An argument with a copy hook."""

    copies = 0

    def __deepcopy__(self, memo):
        Counter.copies += 1
        return Counter()


def test_copy_hooks_of_arguments_are_called_at_each_activation():
    before = Counter.copies
    streamer = Streamer(forever, [Counter()])
    for _ in range(3):
        next(streamer.iterate())
    assert Counter.copies == before + 3


@pytest.mark.parametrize("make", [lambda: [1], lambda: {1: 2}, lambda: np.zeros(3), lambda: {1}])
def test_what_a_hook_takes_out_while_it_is_copied_is_not_taken_for_something_new(make):
    class Clearing:
        def __deepcopy__(self, memo):
            del around[0]
            gc.collect()
            # Were the first item gone, one of these would have its place in memory.
            return [_core.isolate(value, memo) for value in [make() for _ in range(50)]]

    around = [make(), Clearing(), 3]
    first, copies = _core.isolate(around, {})
    assert all(value is not first for value in copies)


def test_a_list_grows_while_it_is_copied_as_under_deepcopy():
    def result_of(copied):
        class Growing:
            def __deepcopy__(self, memo):
                around.append("new")
                return 0

        around = ["a", Growing(), "b"]
        return copied(around, {})

    assert result_of(_core.isolate) == result_of(copy.deepcopy) == ["a", 0, "b", "new"]


def test_a_copy_that_fails_halfway_leaves_nothing_to_be_found():
    inside = [1, 2, (item for item in "ab")]
    iterator = iter(inside)
    ours, again = _core.isolate((iterator, inside), {})
    assert ours is iterator
    assert again[:2] == [1, 2]
    assert again[2] is inside[2]


def test_an_argument_nested_too_deep_is_an_error_not_a_crash():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        next(Streamer(forever, deep).iterate())
    while deep:
        deep = deep.pop()


def test_iterations_see_neither_each_other_nor_the_caller():
    array = np.zeros(2)
    streamer = Streamer(write_into, array, 3)
    first, second = streamer.iterate(), streamer.iterate()
    seen = [next(first), next(second), next(first), next(second)]
    array[:] = 9
    seen += [next(first), next(second)]
    assert seen == [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]]
    assert array.tolist() == [9, 9]
    assert list(streamer.iterate(1)) == [[9, 9]]


def test_what_arguments_share_they_share_inside_an_iteration():
    def source(a, b, boxed):
        a.append(1)
        yield a is b, boxed["a"] is a, len(b)

    values = []
    streamer = Streamer(source, values, values, {"a": values})
    assert list(streamer) == list(streamer) == [(True, True, 1)]
    assert values == []


def test_a_large_array_passed_twice_stays_one(all_large):
    def source(a, b, boxed):
        a[0] += 1
        yield a is b is boxed[0], a.tolist()

    array = np.zeros(2)
    mux = pescador.RoundRobinMux([Streamer(source, array, array, [array])] * 3)
    assert list(mux) == [(True, [1, 0])] * 3


def test_a_streamer_among_the_arguments_is_copied_with_its_arguments():
    inner = Streamer(forever, [1])
    ours = _core.isolate([inner, inner], {})
    assert ours[0] is ours[1] is not inner
    assert vars(ours[0]) == vars(inner)
    assert ours[0].args[0] is not inner.args[0]
    inner.note = "mine"
    assert _core.isolate(inner, {}).note == "mine"


# --------------------------------------------------------------------------------- generators

BITS = [
    np.random.MT19937,
    np.random.PCG64,
    np.random.PCG64DXSM,
    np.random.Philox,
    np.random.SFC64,
]


def legacy(seed):
    return np.random.RandomState(seed)


def drawn(generator):
    return (
        generator.standard_normal(3).tolist(),
        generator.permutation(9).tolist(),
        generator.bytes(9),
    )


@pytest.mark.parametrize("wrap", [np.random.RandomState, np.random.Generator])
@pytest.mark.parametrize("bits", [*BITS, lambda seed: legacy(seed)._bit_generator])
@pytest.mark.parametrize("normals", [0, 1, 2, 700])
def test_a_copy_of_a_generator_goes_on_as_a_deep_copy(wrap, bits, normals):
    original = wrap(bits(3))
    original.standard_normal(normals)
    original.bytes(4)
    before = pickle.dumps(original)
    ours, theirs = _core.isolate(original, {}), copy.deepcopy(original)
    assert type(ours) is wrap
    assert pickle.dumps(ours) == pickle.dumps(theirs) == before
    assert drawn(ours) == drawn(theirs)
    assert pickle.dumps(original) == before


def test_a_copy_of_a_generator_spawns_as_a_deep_copy():
    original = np.random.default_rng(3)
    original.spawn(2)
    ours, theirs = _core.isolate(original, {}), copy.deepcopy(original)
    assert ours.spawn(1)[0].random() == theirs.spawn(1)[0].random()
    assert original.bit_generator.seed_seq.n_children_spawned == 2


def test_a_generator_and_its_bits_stay_together():
    state = np.random.RandomState(0)
    ours, bits = _core.isolate([state, state._bit_generator], {})
    assert ours._bit_generator is bits
    assert bits is not state._bit_generator
    assert bits.lock is not state._bit_generator.lock


def test_a_subclass_of_a_generator_is_left_to_copy():
    class Mine(np.random.RandomState):
        pass

    assert type(_core.isolate(Mine(0), {})) is type(copy.deepcopy(Mine(0)))


def test_a_mux_hands_its_streams_generators_that_go_on_together():
    def draws(state):
        while True:
            yield state.randint(1000)

    state = np.random.RandomState(0)
    mux = pescador.RoundRobinMux([Streamer(draws, state)] * 2)
    expected = np.random.RandomState(0).randint(1000, size=3).repeat(2).tolist()
    assert list(mux.iterate(6)) == list(mux.iterate(6)) == expected


# ---------------------------------------------------------------------------------- iterables


def test_a_list_is_copied_and_can_change_while_it_is_iterated():
    source = [1, 2, 3]
    streamer = Streamer(source)
    first = streamer.iterate()
    assert next(first) == 1
    source.clear()
    assert list(first) == [2, 3]
    assert list(streamer) == []


def test_what_is_inside_a_list_is_copied():
    source = [[1], [2]]
    for item, original in zip(Streamer(source), source, strict=True):
        item.append(0)
        assert original == item[:1]


@pytest.mark.parametrize("leaf", [1, [1], iter, "generator"])
def test_tuples_that_share_tuples_are_looked_at_once(leaf):
    # A billion ways lead to the leaf: to go them all takes minutes.
    value = ((x for x in "a") if leaf == "generator" else leaf,)
    for _ in range(30):
        value = (value, value)
    depths = []

    def source(value):
        while isinstance(value, tuple):
            depths.append(1)
            assert value[0] is value[-1]
            value = value[0]
        yield value

    assert len(list(Streamer(source, value))) == 1
    assert len(depths) == 31


def test_a_tuple_of_immutable_items_is_shared():
    source = tuple(range(1000))
    with Streamer(source) as active:
        assert active.streamer is source
    assert list(Streamer(source)) == list(Streamer(source)) == list(source)


def test_a_range_is_iterated_each_time():
    streamer = Streamer(range(3))
    assert list(streamer) == list(streamer) == [0, 1, 2]


def test_a_dict_gives_its_keys_and_can_change_while_it_is_iterated():
    source = {"a": [1], "b": 2}
    streamer = Streamer(source)
    first = streamer.iterate()
    assert next(first) == "a"
    source["c"] = 3
    assert list(first) == ["b"]
    assert list(streamer) == ["a", "b", "c"]


def test_a_generator_object_is_shared_and_loses_nothing():
    streamer = Streamer(i for i in range(6))
    assert list(streamer.iterate(2)) == [0, 1]
    assert list(streamer.cycle(2)) == [2, 3]
    assert list(streamer) == [4, 5]
    assert list(streamer) == []


def test_a_generator_object_among_the_arguments_loses_nothing():
    def pairs(source):
        while True:
            try:
                yield [next(source), next(source)]
            except StopIteration:
                return

    streamer = Streamer(pairs, (i for i in range(8)))
    assert list(streamer.iterate(2)) == [[0, 1], [2, 3]]
    assert list(streamer) == [[4, 5], [6, 7]]


def test_a_generator_object_in_a_mux_loses_nothing():
    mux = pescador.StochasticMux([(i for i in range(20))], 1, 3, dist="constant")
    assert list(mux.iterate(5)) == [0, 1, 2, 3, 4]
    assert list(mux.cycle(5)) == [5, 6, 7, 8, 9]
    assert list(mux) == list(range(10, 20))


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_an_open_file_is_read_once(tmp_path, mode):
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\nc\n")
    with open(path, mode) as lines:
        streamer = Streamer(lines)
        assert [len(line) for line in streamer.iterate(1)] == [2]
        assert [line[:1] in ("b", "c", b"b", b"c") for line in streamer] == [True, True]
        assert list(streamer) == []


@pytest.mark.parametrize("file", [io.StringIO("x\ny\n"), io.BytesIO(b"x\ny\n")])
def test_a_file_in_memory_is_copied_and_read_each_time(file):
    streamer = Streamer(file)
    assert list(streamer) == list(streamer) == list(file)


def test_an_iterator_that_can_be_copied_is_copied_and_another_is_shared():
    copied = Streamer(iter([1, 2, 3]))
    assert list(copied) == list(copied) == [1, 2, 3]
    shared = Streamer(csv.reader(["a,b", "c,d"]))
    assert list(shared.iterate(1)) == [["a", "b"]]
    assert list(shared) == [["c", "d"]]
    assert list(shared) == []


def test_an_iterator_is_copied_once_in_an_activation():
    class Items:
        copies = 0

        def __iter__(self):
            return self

        def __next__(self):
            return 1

        def __deepcopy__(self, memo):
            Items.copies += 1
            return Items()

    assert list(Streamer(Items()).iterate(2)) == [1, 1]
    assert Items.copies == 1


def test_two_arguments_that_are_one_iterator_stay_one():
    def pairs(a, b):
        yield from itertools.islice(zip(a, b, strict=False), 2)

    iterator = iter([1, 2, 3, 4])
    streamer = Streamer(pairs, iterator, iterator)
    assert list(streamer) == list(streamer) == [(1, 2), (3, 4)]


# ---------------------------------------------------------------------------- streams of streams


def batches_of(stream, by_name):
    if by_name:
        return Streamer(pescador.buffer_stream, buffer_size=2, stream=stream)
    return Streamer(pescador.buffer_stream, stream, 2)


def firsts(batches):
    return [batch["X"][:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_map_copies_only_the_arguments_of_streams_that_start(by_name):
    def source(counter):
        while True:
            yield {"X": np.zeros(1)}

    counters = [Counter() for _ in range(20)]
    mux = pescador.ChainMux([Streamer(source, counter) for counter in counters])
    batches = batches_of(mux, by_name)
    for start in (batches.iterate, pescador.ShuffledMux([batches] * 3).iterate):
        before = Counter.copies
        next(start())
        assert Counter.copies == before + 1
    assert mux.active == batches.active == 0


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("wrap", [Streamer, lambda s: pescador.ChainMux([s])])
def test_a_map_over_a_generator_object_loses_nothing(by_name, wrap):
    items = data(8, (1,))
    batches = batches_of(wrap(items), by_name)
    assert firsts(batches.iterate(1)) == [[0, 1]]
    assert firsts(pescador.ChainMux([batches]).iterate(1)) == [[2, 3]]
    assert firsts(pescador.StochasticMux([batches], 1, 1, dist="constant").iterate(1)) == [[4, 5]]
    assert firsts(batches) == [[6, 7]]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_map_over_an_activated_copy_goes_on_with_a_copy_of_it(by_name):
    with Streamer(data(6, (1,))) as active:
        next(active.stream_)
        assert firsts(batches_of(active, by_name)) == [[1, 2], [3, 4]]


def test_a_map_over_a_streamer_with_hooks_calls_them():
    class Twice(Streamer):
        def iterate(self, max_iter=None):
            for item in super().iterate(max_iter):
                yield {"X": 2 * item["X"]}

    assert firsts(batches_of(Twice(data, 4), False)) == [[0, 2], [4, 6]]
    assert firsts(batches_of(pescador.ChainMux([Twice(data, 4)]), True)) == [[0, 2], [4, 6]]


def test_a_map_over_a_mux_with_an_iter_of_its_own_calls_it():
    class Reversed(pescador.ChainMux):
        def __iter__(self):
            return iter(list(self.iterate())[::-1])

    assert firsts(batches_of(Reversed([data(4)]), False)) == [[3, 2], [1, 0]]


def test_maps_of_maps_start_from_one_activation():
    array = np.zeros((4, 1))

    def source(array):
        for row in array:
            yield {"X": row.copy()}
            array += 1

    pairs = Streamer(pescador.tuples, batches_of(Streamer(source, array), False), "X")
    assert [x.ravel().tolist() for (x,) in pairs] == [[0, 1], [2, 3]]
    assert [x.ravel().tolist() for (x,) in pairs] == [[0, 1], [2, 3]]
    assert not array.any()


def test_what_a_streamer_is_given_by_name_is_isolated_too():
    values = []
    streamer = Streamer(write_into, array=np.zeros(2), n=2)
    assert list(streamer) == list(streamer) == [[0, 0], [1, 1]]
    assert next(iter(Streamer(forever, value=values))) is not values


def test_a_streamer_that_fails_to_start_is_not_active():
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise RuntimeError("no")

    streamer = Streamer(forever, Uncopyable())
    with pytest.raises(RuntimeError, match="no"):
        next(streamer.iterate())
    assert streamer.active == 0
