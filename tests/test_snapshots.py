"""Large arrays: streams that are given the same one map a snapshot of it."""

import copy
import gc
import pathlib
import pickle
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest

import pescador
from pescador import Streamer
from streams import (
    assert_alike,
    copies_of,
    flags_of,
    forever,
    lone_copies_of,
    read_only,
    snapshots,
    write_into,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="snapshots are for Linux")


@pytest.fixture(scope="module")
def megabyte():
    return np.arange(2**17, dtype=np.float64)


# ------------------------------------------------------------------------- what a stream gets


class Tagged(np.ndarray):
    """A subclass with an attribute of its own."""

    def __array_finalize__(self, obj):
        self.tag = getattr(obj, "tag", None)


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
        assert flags_of(ours) == flags_of(theirs)
        assert repr(ours) == repr(theirs)
        assert getattr(ours, "tag", None) == getattr(theirs, "tag", None)
        assert not np.shares_memory(ours, array)


def test_an_array_is_shuffled_sorted_and_viewed_in_place(all_large):
    for inside in copies_of(np.arange(100.0)):
        np.random.default_rng(0).shuffle(inside)
        inside.sort()
        assert (inside == np.arange(100)).all()
        view = inside.reshape(10, 10)[3:5]
        view[:] = -1
        assert (inside[30:50] == -1).all()


def test_an_array_is_made_read_only_and_writeable_again(all_large):
    for inside in copies_of(np.arange(10.0)):
        with pytest.raises(ValueError, match="read-only"):
            read_only(inside)[0] = 1
        inside.flags.writeable = True
        inside[0] = 1


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
    mux = pescador.RoundRobinMux([Streamer(write_into, array, 2)] * 5).iterate()
    first = [next(mux) for _ in range(5)]
    array[:] = 9
    assert first == [[0] * 4] * 5
    assert [next(mux) for _ in range(5)] == [[1] * 4] * 5
    # The next iteration starts from what is there now.
    assert copies_of(array)[0].tolist() == [9] * 4


def test_a_large_array_passed_twice_stays_one(all_large):
    def source(a, b, boxed):
        a[0] += 1
        yield a is b is boxed[0], a.tolist()

    array = np.zeros(2)
    mux = pescador.RoundRobinMux([Streamer(source, array, array, [array])] * 5)
    assert list(mux) == [(True, [1, 0])] * 5


# ------------------------------------------------------------------- who gets one, how long


@linux
def test_all_streams_but_two_that_share_a_large_array_map_one_snapshot(megabyte):
    before = snapshots()
    mux = pescador.RoundRobinMux([Streamer(forever, megabyte)] * 50, "cycle").iterate()
    inside = [next(mux) for _ in range(50)]
    now = snapshots()
    assert (now.maps - before.maps, now.files - before.files) == (48, 1)
    inside[7][:] = 0
    assert all(array[-1] == 2**17 - 1 for array in inside if array is not inside[7])
    mux.close()
    del mux
    gc.collect()
    # Descriptors are few: this one goes with the iteration, the memory with the last array.
    assert snapshots().files == before.files
    assert all(array[0] == 0 for array in inside)
    del inside
    assert snapshots() == before


@linux
def test_an_array_that_one_stream_uses_gets_no_snapshot(megabyte):
    before = snapshots()
    streams = [Streamer(forever, megabyte + i) for i in range(5)]
    mux = pescador.RoundRobinMux(streams).iterate()
    assert [next(mux)[0] for _ in streams] == [0, 1, 2, 3, 4]
    assert snapshots() == before


def once(array):
    yield array


@linux
def test_snapshots_that_no_open_stream_uses_are_few(all_large):
    files = snapshots().files
    streams = [Streamer(forever, np.arange(3.0) + i) for i in range(20)]
    mux = pescador.StochasticMux(streams, 5, 2, random_state=0).iterate()
    found = 0
    for _ in range(600):
        assert next(mux).shape == (3,)
        found = max(found, snapshots().files - files)
    # There were some, of streams that were open twice, or twice in a short time.
    assert 0 < found <= 5 + 8


@linux
def test_snapshots_that_no_open_stream_uses_are_small():
    before = snapshots().bytes
    arrays = [np.zeros(24 * 2**20, np.uint8) for _ in range(2)]
    mux = pescador.ChainMux([Streamer(once, array) for array in arrays], "cycle").iterate()
    found = 0
    for _ in range(12):
        next(mux)
        found = max(found, snapshots().bytes - before)
    assert 0 < found <= (24 + 32) * 2**20
    mux.close()
    assert snapshots().bytes == before


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
@pytest.mark.parametrize(
    ("source", "expected", "maps"), [(overwrite, 1, 0), (forever, 2**17 - 1, 1)]
)
def test_an_array_that_its_streams_write_all_over_is_copied(megabyte, source, expected, maps):
    before = snapshots().maps
    mux = pescador.StochasticMux(
        [Streamer(source, megabyte)], 1, 1, dist="constant", random_state=0
    ).iterate()
    for _ in range(9):
        assert np.max(next(mux)) == expected
    assert snapshots().maps == before + maps


@linux
def test_muxes_inside_a_mux_share_its_snapshots(megabyte):
    files = snapshots().files

    def grow(depth):
        if not depth:
            return Streamer(forever, megabyte)
        return pescador.RoundRobinMux([grow(depth - 1) for _ in range(3)])

    inside = grow(3).iterate()
    assert len({id(next(inside)) for _ in range(27)}) == 27
    assert snapshots().files == files + 1


# --------------------------------------------------------------------- when the system refuses


def run(script, *args):
    """Run a script in a process of its own; return what it printed."""
    head = """
        import gc, os, resource, sys
        import numpy as np
        import pescador
        from pescador import Streamer
        from streams import forever, snapshots

        def copies_of(*values, n=4):
            streams = [Streamer(forever, value) for _ in range(n) for value in values]
            return list(pescador.RoundRobinMux(streams).iterate(len(streams)))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script), *map(str, args)],
        cwd=pathlib.Path(__file__).parent,
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
        # Nothing can be listed without a descriptor.
        del taken[:3]
        assert snapshots().maps == 0
        assert [a[-1] for a in inside] == list(range(20)) * 4
        del taken
        # A quarter of the allowance, while the mux runs.
        streams = [Streamer(forever, array) for _ in range(4) for array in arrays]
        mux = pescador.RoundRobinMux(streams).iterate()
        inside = [next(mux) for _ in streams]
        assert snapshots().files == 16
        assert [a[-1] for a in inside] == list(range(20)) * 4
        """)


@linux
def test_a_file_that_got_the_descriptor_of_a_snapshot_is_not_taken_for_it():
    run("""
        import tempfile
        streams = [Streamer(forever, np.full(2**17, 7))] * 8
        mux = pescador.StochasticMux(streams, 4, rate=1).iterate()
        assert all((next(mux) == 7).all() for _ in range(20))
        assert snapshots().files == 1
        os.closerange(3, 100)
        others = [tempfile.TemporaryFile() for _ in range(20)]
        for other in others:
            other.write(bytes(2**20))
        assert all((next(mux) == 7).all() for _ in range(20))
        mux.close()
        for other in others:
            other.close()
        """)


@linux
def test_without_room_for_the_file_arrays_are_copied():
    run("""
        array = np.arange(2**17)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
        mux = pescador.RoundRobinMux([Streamer(forever, array)] * 4).iterate()
        inside = [next(mux) for _ in range(4)]
        assert snapshots().files == snapshots().maps == 0
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
        room = [np.ones_like(array) for _ in range(7)]
        del room
        copies_of(np.arange(2**16), n=1)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, -1))
        inside = copies_of(array)
        assert snapshots().maps == 0
        assert len(inside) == 4 and all((a == array).all() for a in inside)
        """)


@linux
def test_without_memory_for_a_copy_there_is_an_error_and_it_passes():
    run("""
        array = np.arange(2**22)
        mux = pescador.RoundRobinMux([Streamer(forever, array)] * 4)
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
        assert [a[-1] for a in mux.iterate(4)] == [2**22 - 1] * 4
        """)


@linux
def test_after_a_fork_neither_process_sees_the_others_writes():
    run("""
        array = np.arange(2**17)
        streams = [Streamer(forever, array)] * 5
        mux = pescador.RoundRobinMux(streams, "cycle").iterate()
        inside = [next(mux) for _ in range(4)]
        to_child, to_parent = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            for a in inside:
                a[:] = -1
            inside.append(next(mux))
            os.write(to_parent[1], b"x"), os.read(to_child[0], 1)
            right = all((a == -1).all() for a in inside[:4]) and (inside[4] == array).all()
            del a, inside, mux
            gc.collect()
            os._exit(0 if right and snapshots().maps == snapshots().files == 0 else 1)
        os.read(to_parent[0], 1)
        assert all((a == array).all() for a in inside)
        inside.append(next(mux))
        for a in inside:
            a[:] = -2
        os.write(to_child[1], b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert all((a == -2).all() for a in inside)
        assert (snapshots().maps, snapshots().files) == (3, 1)
        """)


@linux
def test_no_descriptor_is_left_to_another_program():
    run("""
        mux = pescador.RoundRobinMux([Streamer(forever, np.arange(2**17))] * 4).iterate()
        inside = [next(mux) for _ in range(4)]
        assert snapshots().files == 1
        import subprocess
        listed = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False,
                                capture_output=True, text=True).stdout
        assert "memfd" not in listed
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
        # What is kept is bounded as well: a quarter of what Linux allows.
        kept = list(mux.iterate(65530 // 4 + 500))
        assert snapshots().maps == 65530 // 4
        assert all(a[-1] == 2**16 - 1 for a in kept[::100])
        """)


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
