"""What a source reads from, for one visit: files that change or are kept, errors, limits."""

import contextlib
import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import zipfile

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import aged, check_parts, same, whole

from pescador import ArgumentError, DataError, PescadorError
from pescador._stores import Map, mapped, read_runs
from pescador.sources import files, stores
from pescador.sources.stores import check_data, count_rows, open_store


def in_new_process(script, **names):
    """Run a script in a process of its own, which may set limits for itself."""
    prelude = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + "\n" + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Visits


def test_a_file_that_was_opened_before_gives_the_same_store(npz):
    first = open_store(npz)
    first.close()
    assert open_store(npz) is first
    assert open_store(pathlib.Path(npz)) is first
    assert open_store(npz, ["X"]) is not first


def test_a_file_that_changed_just_now_is_looked_at_anew(npz):
    os.utime(npz)
    first = open_store(npz)
    first.close()
    assert open_store(npz) is not first


def test_what_a_file_holds_is_remembered_longer_than_its_map(npz):
    whole(open_store(npz).arrays["X"])
    stores._kept.clear()
    status = os.stat(npz)
    with open(npz, "r+b") as file:
        file.seek(-22, io.SEEK_END)
        file.write(bytes(22))
    os.utime(npz, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_store(npz).arrays["y"].tolist() == list(range(10))
    # Not so once its time tells of the change.
    os.utime(npz)
    with pytest.raises(DataError, match=r"a\.npz cannot be read; is it damaged\?"):
        open_store(npz)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_file_that_changes_between_visits_is_read_anew(tmp_path, mmap, save, how):
    path = tmp_path / "a.npz"
    for value in 1, 2, 3:
        written = path if how == "in place" else tmp_path / "b.npz"
        save(written, X=np.full(7, value), y=np.arange(value))
        aged(written)
        os.replace(written, path)
        with open_store(path, mmap=mmap) as store:
            same(whole(store.arrays["X"]), np.full(7, value))
            same(whole(store.arrays["y"]), np.arange(value))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_that_is_truncated_or_removed_between_visits_is_an_error(tmp_path, mmap, save):
    path = tmp_path / "a.npz"
    save(path, X=np.arange(1000))
    aged(path)
    open_store(path, mmap=mmap).close()
    os.truncate(path, 700)
    with pytest.raises(DataError, match=r"a\.npz cannot be read; is it damaged\?"):
        open_store(path, mmap=mmap)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.npz does not exist"):
        open_store(path, mmap=mmap)


def test_a_file_that_is_truncated_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(1000))
    assert path.stat().st_size == 8128
    with open_store(aged(path), mmap=False) as store:
        array = store.arrays["data"]
        same(array.read(np.array([1, 2, 900])), np.array([1, 2, 900]))
        os.truncate(path, 700)
        same(array.read(np.array([1, 2])), np.array([1, 2]))
        with pytest.raises(DataError, match=r"a\.npy: key 'data' was truncated: .* byte \d+"):
            array.read(np.array([1, 2, 900]))
        with pytest.raises(DataError, match="was truncated"):
            array.read_slice(0, 1000)


def test_a_file_that_is_replaced_while_it_is_read_stays_or_is_an_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(10))
    with open_store(aged(path), mmap=False) as store:
        array = store.arrays["data"]
        array.read_slice(0, 1)
        np.save(tmp_path / "b.npy", np.ones(10))
        os.replace(tmp_path / "b.npy", path)
        same(array.read_slice(0, 10), np.zeros(10))
        store.close()
        with pytest.raises(DataError, match=r"a\.npy was changed while it was read"):
            array.read_slice(0, 10)


def test_rows_that_are_not_there_are_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10))
    array = open_store(tmp_path / "a.npy", mmap=False).arrays["data"]
    for rows in [-1, 3], [3, 10]:
        with pytest.raises(IndexError, match="has 10 rows"):
            array.read(np.array(rows))


def test_a_relative_path_means_the_folder_of_the_moment(tmp_path, monkeypatch):
    for name in "one", "two":
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.array([name]))
        aged(tmp_path / name / "a.npy")
    for name in "one", "two", "one":
        monkeypatch.chdir(tmp_path / name)
        assert open_store("a.npy").arrays["data"].tolist() == [name]


def test_threads_may_open_and_read_the_same_files(tmp_path):
    paths = []
    for i in range(20):
        np.savez(tmp_path / f"{i}.npz", X=np.full(1000, i))
        paths.append(aged(tmp_path / f"{i}.npz"))
    wrong = []

    def visit(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(300):
                i = int(rng.integers(20))
                with open_store(paths[i], mmap=bool(rng.integers(2))) as store:
                    if whole(store.arrays["X"]).tolist() != [i] * 1000:
                        wrong.append(i)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Errors


def a_zip(path, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        content = io.BytesIO()
        np.save(content, np.arange(100))
        archive.writestr("X.npy", content.getvalue())


BAD = {
    "missing": ("a.npz", lambda path: None, "a.npz does not exist"),
    "folder": ("a.npz", os.mkdir, "a.npz is a folder; a file was expected"),
    "pipe": ("a.npz", os.mkfifo, "a.npz is a pipe or a device; a file was expected"),
    "empty": ("a.npz", lambda path: path.touch(), "a.npz cannot be read; is it damaged"),
    "no zip": (
        "a.npz",
        lambda path: path.write_bytes(b"x" * 999),
        "a.npz cannot be read; is it da",
    ),
    "no arrays": ("a.npz", lambda path: np.savez(path), "a.npz holds no arrays: nothing to draw"),
    "bzip2": (
        "a.npz",
        lambda path: a_zip(path, compression=12),
        "key 'X' is compressed by method 12",
    ),
    "empty npy": ("a.npy", lambda path: path.touch(), "a.npy cannot be read; is it damaged"),
    "no npy": (
        "a.npy",
        lambda path: path.write_bytes(b"x" * 999),
        "a.npy cannot be read; is it dam",
    ),
    "pickle": ("a.npy", lambda path: path.write_bytes(pickle.dumps([1])), "a.npy cannot be read"),
    "objects": (
        "a.npz",
        lambda path: np.savez(path, X=np.array([1, "a"], object)),
        "a.npz: key 'X' holds Python objects .dtype object., which are never unpickled",
    ),
    "ragged": (
        "a.npy",
        lambda path: np.save(path, np.array([[1], [1, 2]], object)),
        "a.npy: key 'data' holds Python objects",
    ),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
@pytest.mark.parametrize(("name", "make", "expected"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("mmap", [True, False])
def test_what_cannot_be_read_is_an_error_that_says_why(tmp_path, name, make, expected, mmap):
    make(tmp_path / name)
    with pytest.raises(DataError, match=expected):
        open_store(tmp_path / name, mmap=mmap)


def test_nothing_is_ever_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    for save, name in (np.savez, "a.npz"), (np.savez_compressed, "b.npz"):
        save(tmp_path / name, X=np.array([Trap()], object))
        with pytest.raises(DataError, match="never unpickled"):
            open_store(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_arrays_that_nobody_asked_for_may_be_of_objects(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.arange(3), names=np.array(["a", None], object))
    assert list(open_store(tmp_path / "a.npz", ["X"]).arrays) == ["X"]


def test_a_missing_key_is_named_with_those_that_are_there(npz):
    with pytest.raises(DataError, match=r"a\.npz has no key 'Z'; it has 'X', 'y'"):
        open_store(npz, ["X", "Z"])


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="there are no users here")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(3))
    path.chmod(0)
    in_new_process(
        """
        import os
        from pescador import DataError
        from pescador.sources.stores import open_store
        if os.geteuid() == 0:
            os.chmod(folder, 0o755)
            os.chdir(folder)
            os.seteuid(65534)
        else:
            os.chdir(folder)
        try:
            open_store("a.npy")
        except DataError as error:
            assert str(error) == "a.npy may not be read: permission denied", error
        else:
            raise AssertionError
        """,
        folder=str(tmp_path),
    )


@given(save=st.sampled_from([np.savez, np.savez_compressed]), mmap=st.booleans(), data=st.data())
def test_a_damaged_npz_gives_arrays_or_an_error_of_ours(save, mmap, data):
    content = io.BytesIO()
    save(content, X=np.arange(6.0).reshape(2, 3), y=np.arange(5, dtype=np.int8))
    damaged = bytearray(content.getvalue())
    # The first bytes of members and the directory at the end matter most.
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a.npz")
        path.write_bytes(damaged)
        # Any other error fails.
        with contextlib.suppress(DataError), open_store(path, mmap=mmap) as store:
            for array in store.arrays.values():
                assert whole(array).shape == array.shape


@given(size=st.integers(0, 700), mmap=st.booleans(), name=st.sampled_from(["a.npy", "a.npz"]))
def test_a_truncated_file_is_an_error(size, mmap, name):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        if name.endswith("z"):
            np.savez(path, X=np.arange(100))
        else:
            np.save(path, np.arange(100))
        os.truncate(path, size)
        with pytest.raises(DataError, match=r"a\.np[yz].* (truncated|damaged)"):
            open_store(path, mmap=mmap)


def test_a_compressed_member_with_a_wrong_checksum_is_an_error(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, X=np.arange(1000))
    content = bytearray(path.read_bytes())
    crc = zipfile.ZipFile(path).getinfo("X.npy").CRC.to_bytes(4, "little")
    at = content.rindex(crc)
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: key 'X' .*damaged"):
        open_store(path)


def test_rows_are_counted_once_they_are_alike(npz, tmp_path):
    assert count_rows(open_store(npz)) == 10
    for wrong, expected in [
        ({"X": np.zeros(3), "y": np.zeros(4)}, "different lengths: 3 of 'X', 4 of 'y'"),
        ({"X": np.zeros((0, 3))}, "no rows: nothing to draw from"),
        ({"X": np.zeros(3), "rate": np.float64(1)}, "key 'rate' is a single value.*keys="),
    ]:
        np.savez(tmp_path / "b.npz", **wrong)
        for data in wrong, tmp_path / "b.npz":
            name = "data" if data is wrong else str(tmp_path / "b.npz")
            with pytest.raises(DataError, match=f"{name}.*{expected}"):
                count_rows(open_store(data))


def test_data_that_no_visit_could_open_are_refused_without_reading():
    for data in 3, None, "a.txt", "folder", {"X": "a.txt"}, b"a.npy":
        with pytest.raises(ArgumentError, match=r"data=.* must be a"):
            check_data(data)
    for data in "a.npz", pathlib.Path("a.H5"), "a.zarr/", {"X": "a.npy"}, np.zeros(3), dict:
        check_data(data)


# Limits


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc here")
def test_a_hundred_thousand_files_stay_within_limits(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(100))
    aged(tmp_path / "a.npy")
    in_new_process(
        """
        import os, resource, shutil
        import numpy as np
        from pescador._stores import mapped
        from pescador.sources import files, npy, stores
        # A file system may allow fewer names of one file.
        os.chdir(folder)
        source = "a.npy"
        for i in range(100_000):
            try:
                os.link(source, f"{i}.npy")
            except OSError:
                shutil.copy2(source, f"{i}.npy")
                source = f"{i}.npy"
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        for i in range(100_000):
            store = stores.open_store(f"{i}.npy")
            if i % 5 == 0:
                # Open all at once: the last ones are read.
                held.append(store)
            store.close()
        assert len(held) > files.MOST_MAPS > 1000
        assert mapped()[0] <= files.MOST_MAPS
        assert len(stores._kept) <= files.MOST_KEPT
        assert len(npy._layouts) <= files.MOST_LAYOUTS
        assert not isinstance(held[-1].arrays["data"], np.ndarray)
        assert isinstance(held[0].arrays["data"], np.ndarray)
        for store in held[:3] + held[-100:]:
            array = store.arrays["data"]
            rows = array if isinstance(array, np.ndarray) else array.read_slice(0, 100)
            assert rows.tolist() == list(range(100))
        assert len(os.listdir("/proc/self/fd")) < 32
        for store in held:
            store.close()
        assert len(os.listdir("/proc/self/fd")) < 10
        """,
        folder=str(tmp_path),
    )


def sparse(path, n_bytes):
    """A file of that many zeros, which takes no room."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (n_bytes,)}
        )
        file.truncate(file.tell() + n_bytes)
    return aged(path)


def test_no_more_than_a_quarter_of_the_memory_is_mapped_for_later(tmp_path):
    before = mapped()[1]
    for i in range(20):
        with open_store(sparse(tmp_path / f"{i}.npy", files.MOST_BYTES // 8)) as store:
            assert isinstance(store.arrays["data"], np.ndarray)
        del store
        assert mapped()[1] <= max(files.MOST_BYTES, before)
    stores._kept.clear()
    assert mapped()[1] <= before


def test_files_are_read_where_there_is_no_room_for_maps(tmp_path):
    now = psutil.Process().memory_info().vms
    most = 4 * (now + 2**30)
    paths = [sparse(tmp_path / f"{i}.npy", most // 10) for i in range(10)]
    in_new_process(
        """
        import resource
        import numpy as np
        from pescador._stores import mapped
        from pescador.sources.stores import open_store
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        held = [open_store(path) for path in paths]
        kinds = [isinstance(store.arrays["data"], np.ndarray) for store in held]
        assert kinds == [True, True] + [False] * 8, kinds
        assert mapped()[1] <= most // 4
        assert held[-1].arrays["data"].read(np.array([5])).tolist() == [0]
        # Maps that no visit needs make room.
        del held
        assert isinstance(open_store(paths[-1]).arrays["data"], np.ndarray)
        """,
        most=most,
        paths=paths,
    )


def test_runs_of_bytes_are_read_where_they_lie(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        room = bytearray(6)
        read_runs(descriptor, np.array([5, 8, 50]), 2, room)
        assert list(room) == [5, 6, 8, 9, 50, 51]
        for n, size in (2, 5), (0, 0), (-1, 6):
            with pytest.raises(ValueError, match="are not room for"):
                read_runs(descriptor, np.array([5, 8, 50]), n, bytearray(size))
        with pytest.raises(EOFError, match="byte 100"):
            read_runs(descriptor, np.array([5, 99]), 2, bytearray(4))
        with pytest.raises(ValueError, match="size=0 is not positive"):
            Map(descriptor, 0)
    finally:
        os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_runs(descriptor, np.array([5]), 2, bytearray(2))
    with pytest.raises(OSError, match="Bad file descriptor"):
        Map(descriptor, 10)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_a_long_read_can_be_interrupted(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)

    class Interrupted(Exception):
        pass

    def interrupt(*args):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    room = bytearray(2**25)
    with open(path, "rb") as file:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupted):
                read_runs(file.fileno(), np.zeros(len(room), np.int64), 1, room)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert room[-1] == 0


def test_descriptors_that_are_kept_make_room_for_a_file_that_is_opened(tmp_path):
    for i in range(20):
        np.save(tmp_path / f"{i}.npy", np.arange(i + 1))
    in_new_process(
        """
        import os, resource
        from pescador import DataError
        from pescador.sources.stores import open_store
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = [open_store(f"{folder}/{i}.npy", mmap=False) for i in range(20)]
        for store in held[:19]:
            store.arrays["data"].read_slice(0, 1)
        others = []
        try:
            while True:
                others.append(os.open(folder, os.O_RDONLY))
        except OSError:
            pass
        assert open_store(f"{folder}/19.npy").arrays["data"].tolist() == list(range(20))
        assert held[0].arrays["data"].read_slice(0, 1).tolist() == [0]
        """,
        folder=str(tmp_path),
    )


def test_a_file_that_got_the_descriptor_of_another_is_not_read_or_closed_for_it(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(9))
    np.save(tmp_path / "b.npy", np.zeros(9, int))
    in_new_process(
        """
        import os
        from pescador.sources.stores import open_store
        stores = [open_store(f"{folder}/a.npy", mmap=False) for _ in range(2)]
        for store in stores:
            store.arrays["data"].read_slice(0, 1)
        os.closerange(3, 100)
        others = [open(f"{folder}/b.npy", "rb") for _ in range(20)]
        assert stores[0].arrays["data"].read_slice(0, 9).tolist() == list(range(9))
        for store in stores:
            store.close()
        for other in others:
            other.close()
        """,
        folder=str(tmp_path),
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_reads_and_closes_without_effect_on_its_parent(npz):
    in_new_process(
        """
        import os
        import numpy as np
        from pescador.sources.stores import open_store
        stores = [open_store(path, mmap=mmap) for mmap in (True, False)]
        def check():
            for store in stores:
                for array, total in zip(store.arrays.values(), (435, 45)):
                    mapped = isinstance(array, np.ndarray)
                    assert (array if mapped else array.read_slice(0, 10)).sum() == total
        check()
        child = os.fork()
        if child == 0:
            check()
            for store in stores:
                store.close()
            stores = [open_store(path, mmap=mmap) for mmap in (True, False)]
            check()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        check()
        """,
        path=npz,
    )


def test_what_was_asked_for_lately_is_held():
    recent = files.Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]


# Arrays in memory and other libraries


def test_arrays_of_the_caller_are_taken_as_they_are():
    data = {"X": np.arange(6).reshape(3, 2), "y": np.arange(3)}
    with open_store(data) as store:
        assert not store.is_file
        assert all(store.arrays[key] is data[key] for key in data)
    assert list(open_store(data, ["y"]).arrays) == ["y"]
    with pytest.raises(DataError, match="data has no key 'Z'; it has 'X', 'y'"):
        open_store(data, ["Z"])
    assert open_store(data["X"]).arrays["data"] is data["X"]


def test_a_subclass_of_an_array_is_a_view_of_its_values(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    memmap = np.load(tmp_path / "a.npy", mmap_mode="r")
    for value in memmap, np.arange(3).view(np.recarray):
        ours = open_store({"X": value}).arrays["X"]
        assert type(ours) is np.ndarray
        assert np.shares_memory(ours, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.ma.masked_array([1, 2], [0, 1]), "key 'X' is a masked array"),
        (np.array([1, None]), "key 'X' holds Python objects"),
        ([[1], [1, 2]], "key 'X' is not an array that NumPy can read"),
        ({1: 2}, "key 'X' is a dict; an array was expected"),
        (None, "key 'X' is a NoneType; an array was expected"),
    ],
    ids=["masked", "objects", "ragged", "dict", "None"],
)
def test_values_that_are_no_arrays_are_errors(value, expected):
    with pytest.raises(DataError, match=f"data: {expected}"):
        open_store({"X": value})


def test_an_empty_mapping_gives_nothing_to_draw_from():
    with pytest.raises(DataError, match="data holds no arrays: nothing to draw from"):
        open_store({})


class Lazy:
    """An array that takes slices, and notes which."""

    def __init__(self, array, chunks=None):
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.chunks = chunks
        self.requests = []

    def __getitem__(self, index):
        self.requests.append(index)
        return self.array[index]


@given(n=st.integers(1, 100), chunk=st.integers(1, 20), data=st.data())
def test_rows_of_a_chunk_are_read_in_one_request(n, chunk, data):
    array = np.arange(n * 3).reshape(n, 3)
    rows = sorted(data.draw(st.sets(st.integers(0, n - 1))))
    lazy = Lazy(array, (chunk, 3))
    ours = open_store({"X": lazy}).arrays["X"]
    assert ours.chunk_rows == chunk
    same(ours.read(np.array(rows, np.int64)), array[rows])
    assert len(lazy.requests) == len({row // chunk for row in rows})
    check_parts(ours, array, data)


def test_an_array_that_gives_something_else_than_it_promised_is_an_error():
    lazy = Lazy(np.arange(10))
    lazy.dtype = np.dtype(np.float32)
    with pytest.raises(DataError, match=r"data: key 'X' gave int64 of shape \(3,\)"):
        open_store({"X": lazy}).arrays["X"].read_slice(0, 3)


def test_files_of_one_array_each_may_make_up_a_store(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
    np.save(tmp_path / "y.npy", np.arange(3))
    np.savez(tmp_path / "z.npz", a=np.arange(3), b=np.arange(3))
    data = {"X": tmp_path / "x.npy", "y": str(tmp_path / "y.npy"), "w": np.ones(3)}
    for mmap in True, False:
        with open_store(data, mmap=mmap) as store:
            assert store.is_file
            same(whole(store.arrays["X"]), np.load(tmp_path / "x.npy"))
            same(whole(store.arrays["y"]), np.arange(3))
            assert count_rows(store) == 3
    with pytest.raises(DataError, match=r"key 'X' is to be the array of .*z\.npz, which holds 2"):
        open_store({"X": tmp_path / "z.npz"})


def test_a_function_opens_data_when_the_visit_begins_and_what_it_gave_is_closed(npz):
    opened = []

    def load():
        opened.append(np.load(npz))
        return opened[-1]

    with open_store(load, ["y"]) as store:
        same(store.arrays["y"], np.arange(10))
        assert store.is_file
        assert opened[0].zip is not None
    assert opened[0].zip is None
    with pytest.raises(DataError, match="has no key 'Z'"):
        open_store(load, ["Z"])
    assert opened[1].zip is None
    with open_store(lambda: npz) as store:
        assert list(store.arrays) == ["X", "y"]
    with pytest.raises(PescadorError, match="data=3 must be a mapping"):
        open_store(lambda: 3)


def test_tensors_of_torch_are_taken_where_they_are():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6).reshape(3, 2)
    ours = open_store({"X": tensor}).arrays["X"]
    assert type(ours) is np.ndarray
    tensor[0, 0] = 9
    assert ours[0, 0] == 9
    with pytest.raises(DataError, match="key 'X' is not an array that NumPy can read"):
        open_store({"X": torch.zeros(3, requires_grad=True)})
