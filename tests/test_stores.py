"""What a source reads from: files of all formats and arrays of all libraries, for one visit."""

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
from hypothesis.extra import numpy as arrays
from stored import aged, check_parts, same, whole

from pescador import ArgumentError, DataError, PescadorError
from pescador._stores import Map, mapped, read_runs
from pescador.sources import files, stores
from pescador.sources.stores import check_data, count_rows, open_store

DTYPES = st.one_of(
    arrays.scalar_dtypes(),
    arrays.array_dtypes(arrays.scalar_dtypes(), min_size=1, max_size=3),
)
LAYOUTS = (
    lambda a: a,
    np.asfortranarray,
    lambda a: a.T,
    lambda a: a[::-1, ..., ::2] if a.ndim > 1 else a,
)


@st.composite
def values(draw):
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array = draw(arrays.arrays(draw(DTYPES), shape))
    return draw(st.sampled_from(LAYOUTS))(array)


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, X=np.arange(30, dtype=np.float32).reshape(10, 3), y=np.arange(10))
    return aged(path)


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


# Files of NumPy


# NumPy's word on names of fields outside of ASCII.
any_fields = pytest.mark.filterwarnings("ignore:Stored array in format:UserWarning")


@any_fields
@given(
    content=st.dictionaries(st.sampled_from(["X", "y", "folder/Z", "ключ"]), values(), min_size=1),
    save=st.sampled_from([np.savez, np.savez_compressed]),
    mmap=st.booleans(),
    data=st.data(),
)
def test_a_store_gives_what_was_saved_in_an_npz(content, save, mmap, data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.npz")
        save(path, **content)
        with open_store(path, mmap=mmap) as store, np.load(path) as theirs:
            assert list(store.arrays) == list(theirs)
            assert store.is_file
            for key, array in store.arrays.items():
                if array.shape:
                    same(whole(array), theirs[key])
                check_parts(array, theirs[key], data)


@any_fields
@given(array=values(), mmap=st.booleans(), data=st.data())
def test_a_store_gives_what_was_saved_in_an_npy(array, mmap, data):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a.npy")
        np.save(path, array)
        with open_store(path, mmap=mmap) as store:
            [(key, ours)] = store.arrays.items()
            assert key == "data"
            check_parts(ours, np.load(path), data)


def test_uncompressed_values_are_mapped_and_nobody_can_write_into_them(npz):
    with open_store(npz) as store:
        for array in store.arrays.values():
            assert type(array) is np.ndarray
            assert type(array.base) is Map
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True


def test_a_store_has_the_keys_that_were_asked_for_in_that_order(npz):
    assert list(open_store(npz, ["y", "X"]).arrays) == ["y", "X"]
    assert list(open_store(npz, ("y",)).arrays) == ["y"]


def test_of_members_of_one_name_the_last_one_counts(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for value in 1, 2:
            content = io.BytesIO()
            np.save(content, np.array([value]))
            archive.writestr(f"X{value}.npy", content.getvalue())
    path.write_bytes(path.read_bytes().replace(b"X2", b"X1"))
    assert open_store(path).arrays["X1"].tolist() == np.load(path)["X1"].tolist() == [2]


@pytest.mark.parametrize("names", [("X", "X.npy"), ("X.npy", "X")])
def test_of_members_of_one_key_the_one_that_numpy_takes_counts(tmp_path, names):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            content = io.BytesIO()
            np.save(content, np.array([value]))
            archive.writestr(name, content.getvalue())
    assert open_store(path).arrays["X"] == np.load(path)["X"] == names.index("X")


def test_members_that_are_no_arrays_are_left_out(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, X=np.arange(3))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "not an array")
        archive.mkdir("folder") if hasattr(archive, "mkdir") else archive.writestr("folder/", "")
    assert list(open_store(path).arrays) == ["X"]
    with pytest.raises(DataError, match=r"a\.npz has no key 'README.txt'; it has 'X'"):
        open_store(path, ["README.txt"])


class Pipe(io.RawIOBase):
    """A file that cannot seek, so that a zip has the sizes of its members behind them."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


@pytest.mark.parametrize("wrap", [lambda file: file, Pipe], ids=["ahead", "behind"])
def test_members_with_64_bit_sizes_are_read_wherever_these_are(tmp_path, wrap):
    path = tmp_path / "a.npz"
    content = io.BytesIO()
    np.save(content, np.arange(5))
    with (
        open(path, "wb") as file,
        zipfile.ZipFile(wrap(file), "w") as archive,
        archive.open("X.npy", "w", force_zip64=True) as member,
    ):
        member.write(content.getvalue())
    for mmap in True, False:
        same(whole(open_store(path, mmap=mmap).arrays["X"]), np.arange(5))


@any_fields
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_of_the_format_are_read(tmp_path, version):
    array = np.zeros(4, np.dtype([("a" if version < (3, 0) else "é", ">f4"), ("b", "i2", (2,))]))
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version)
    same(open_store(path).arrays["data"], array)


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


# Other formats

X = np.arange(200 * 3, dtype=">i2").reshape(200, 3)
Y = np.linspace(0, 1, 200)


def write_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=X, chunks=(16, 3), compression="gzip")
        file.create_dataset("group/y", data=Y)


def write_zarr(path):
    zarr = pytest.importorskip("zarr", minversion="3")
    root = zarr.open_group(path, mode="w")
    root.create_array("X", shape=X.shape, dtype=X.dtype, chunks=(16, 3))[:] = X
    root.create_group("group").create_array("y", shape=Y.shape, dtype=Y.dtype)[:] = Y


def table():
    pyarrow = pytest.importorskip("pyarrow")
    flat = pyarrow.array(X.ravel().astype("i2"))
    return pyarrow.table(
        {"X": pyarrow.FixedSizeListArray.from_arrays(flat, 3), "group/y": pyarrow.array(Y)}
    )


def write_parquet(path):
    pytest.importorskip("pyarrow.parquet").write_table(table(), path, row_group_size=16)


def write_feather(path):
    pytest.importorskip("pyarrow.feather").write_feather(table(), path, chunksize=16)


def write_arrow(path):
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.new_file(str(path), table().schema) as writer:
        writer.write_table(table(), max_chunksize=16)


def write_arrow_stream(path):
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.new_stream(str(path), table().schema) as writer:
        writer.write_table(table(), max_chunksize=16)


FORMATS = {
    "hdf5": ("a.h5", write_hdf5),
    "zarr": ("a.zarr", write_zarr),
    "parquet": ("a.parquet", write_parquet),
    "feather": ("a.feather", write_feather),
    "arrow": ("a.arrow", write_arrow),
    "arrow stream": ("a.arrow", write_arrow_stream),
}


def part(array, rows):
    return array[rows] if isinstance(array, np.ndarray) else array.read(rows)


each_format = pytest.mark.parametrize(("name", "write"), FORMATS.values(), ids=FORMATS)


@each_format
@pytest.mark.parametrize("mmap", [True, False])
def test_files_of_other_formats_give_rows_and_slices(tmp_path, name, write, mmap):
    path = tmp_path / name
    write(path)
    rng = np.random.default_rng(0)
    # HDF5 keeps the order of bytes.
    x = X if name == "a.h5" else X.astype("i2")
    with open_store(path, mmap=mmap) as store:
        assert set(store.arrays) == {"X", "group/y"}
        assert store.is_file
        assert count_rows(store) == 200
        assert store.arrays["X"].chunk_rows == 16
        for _ in range(20):
            rows = np.unique(rng.integers(200, size=20))
            same(store.arrays["X"].read(rows), x[rows])
            same(part(store.arrays["group/y"], rows), Y[rows])
        for start, stop in (0, 200), (5, 37), (16, 32), (7, 7), (199, 200):
            same(store.arrays["X"].read_slice(start, stop), x[start:stop])
            assert store.arrays["X"].read_slice(start, stop).flags.writeable
        same(store.arrays["X"].read_slice(1, 3, axis=1), x[:, 1:3])
        same(store.arrays["X"].read(np.array([], np.int64)), x[:0])
    with open_store(path, ["group/y"]) as store:
        assert list(store.arrays) == ["group/y"]


@each_format
def test_files_of_other_formats_tell_what_is_wrong(tmp_path, name, write):
    path = tmp_path / name
    # Skips where the package is missing.
    write(tmp_path / f"other{path.suffix}")
    with pytest.raises(DataError, match=f"{name} does not exist"):
        open_store(path)
    write(path)
    with pytest.raises(DataError, match=f"{name} has no key 'Z'; it has .*'X'"):
        open_store(path, ["Z"])
    if path.is_file():
        os.truncate(path, path.stat().st_size // 3)
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            open_store(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(DataError, match=f"{name} is a folder; a file was expected"):
            open_store(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc here")
@each_format
def test_files_of_other_formats_are_closed_when_the_visit_ends(tmp_path, name, write):
    path = tmp_path / name
    write(path)

    def descriptors():
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{number}"))
        return [link for link in found if link.startswith(str(path))]

    with open_store(path) as store:
        store.arrays["X"].read(np.array([3]))
    assert not descriptors()
    with pytest.raises(DataError) as caught:
        open_store(path, ["Z"])
    # The error holds what its frames hold.
    assert caught.tb is not None
    assert not descriptors()


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.h5", "h5py"), ("a.zarr", "zarr"), ("a.parquet", "pyarrow"), ("a.feather", "pyarrow"),
     ("a.wav", "soundfile")],
)  # fmt: skip
def test_a_missing_package_is_named(tmp_path, name, package, monkeypatch):
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(PescadorError, match=f"{name} cannot be .* {package!r}: pip install"):
        open_store(tmp_path / name)


def test_hdf5_text_groups_and_empty_datasets_are_errors(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["text"] = ["a", "bc"]
        file["one"] = 3.0
        file.create_group("group")
        file["empty"] = h5py.Empty("f4")
    for key, expected in [
        ("text", "holds Python objects, text of any length or ragged rows"),
        ("group", "is a group; an array was expected"),
        ("empty", "is empty; an array was expected"),
    ]:
        with pytest.raises(DataError, match=rf"a\.h5: key '{key}' {expected}"):
            open_store(path, [key])
    assert open_store(path, ["one"]).arrays["one"] == 3


def test_a_zarr_array_by_itself_has_the_key_data(tmp_path):
    zarr = pytest.importorskip("zarr", minversion="3")
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(10,), dtype="f4", chunks=(4,))[:] = np.arange(10)
    with open_store(path) as store:
        same(store.arrays["data"].read(np.array([1, 9])), np.array([1, 9], "f4"))


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_columns_that_are_no_arrays_are_errors(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / name
    columns = {
        "text": ["a", "b", "c"],
        "ragged": [[1], [1, 2], []],
        "fields": [{"a": 1}] * 3,
        "no list": [[1], None, [3]],
        "null": [1, None, 3],
        "nan": [1.0, None, 3.0],
        "flag": [True, False, True],
        "day": np.array(["2020-01-01"] * 3, "M8[ms]"),
    }
    data = pyarrow.table(columns)
    if name.endswith("r"):
        pytest.importorskip("pyarrow.feather").write_feather(data, path)
    else:
        pytest.importorskip("pyarrow.parquet").write_table(data, path)
    with pytest.raises(DataError, match=f"{name}: key 'text' holds .* text"):
        open_store(path)
    with pytest.raises(DataError, match=f"{name}: key 'fields' is of type struct"):
        open_store(path, ["fields"])
    with open_store(path, ["ragged", "no list"]) as store:
        with pytest.raises(DataError, match="key 'ragged' has rows of different lengths: 1 and 2"):
            store.arrays["ragged"].read_slice(0, 3)
        with pytest.raises(DataError, match="key 'no list' has rows that are null"):
            store.arrays["no list"].read_slice(0, 3)
    with open_store(path, ["null", "nan", "flag", "day"]) as store:
        with pytest.raises(DataError, match=f"{name}: key 'null' has values that are null"):
            store.arrays["null"].read_slice(0, 3)
        same(store.arrays["nan"].read_slice(0, 3), np.array([1, np.nan, 3]))
        same(store.arrays["flag"].read_slice(0, 3), np.array([True, False, True]))
        same(store.arrays["day"].read_slice(0, 3), columns["day"])


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_lists_of_one_length_are_rows(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    array = np.arange(24.0).reshape(4, 2, 3)
    path = tmp_path / name
    fixed = pyarrow.list_(pyarrow.list_(pyarrow.float64()), 2)
    data = pyarrow.table({"X": array.tolist(), "fixed": pyarrow.array(array.tolist(), fixed)})
    if name.endswith("r"):
        pytest.importorskip("pyarrow.feather").write_feather(data, path)
    else:
        pytest.importorskip("pyarrow.parquet").write_table(data, path, row_group_size=3)
    with open_store(path, ["X", "fixed"]) as store:
        for ours in store.arrays.values():
            same(ours.read(np.array([1, 3])), array[[1, 3]])
            same(ours.read_slice(0, 4), array)


def test_tensors_of_arrow_keep_their_shape(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    array = np.arange(24.0).reshape(4, 2, 3)
    tensors = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(array)
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"X": tensors}), tmp_path / "a.parquet", row_group_size=3
    )
    with open_store(tmp_path / "a.parquet") as store:
        same(store.arrays["X"].read(np.array([1, 3])), array[[1, 3]])
        same(store.arrays["X"].read_slice(0, 4), array)


AUDIO = {
    "wav": ("wav", None),
    "flac": ("flac", None),
    "vorbis": ("ogg", "VORBIS"),
    "opus": ("ogg", "OPUS"),
    "mp3": ("mp3", None),
}


@pytest.mark.parametrize(("suffix", "subtype"), AUDIO.values(), ids=AUDIO)
@pytest.mark.parametrize("n", [20_000, 400_000])
def test_windows_of_audio_are_those_of_the_whole_file(tmp_path, suffix, subtype, n):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 48_000, 2, subtype) as file:
        for _ in range(0, n, 20_000):
            file.write(rng.uniform(-0.5, 0.5, (20_000, 2)))
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)

    with open_store(path) as store:
        [array] = store.arrays.values()
        assert list(store.arrays) == ["data"]
        assert (array.shape, array.dtype) == (expected.shape, np.float32)
        for start in (0, 100, 228, n - 128, *rng.integers(n - 128, size=100).tolist()):
            close(array.read_slice(start, start + 128), expected[start : start + 128])
        assert array.read_slice(3, 3).shape == (0, 2)
        close(array.read(np.array([7, n // 2])), expected[[7, n // 2]])
        close(array.read_slice(1, 2, axis=1), expected[:, 1:])
