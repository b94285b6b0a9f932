"""`pescador.batches`: from files to batches in one call."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

import pescador
from pescador import ArgumentError, Streamer, buffer_stream
from pescador.sources import Rows, Windows, from_files


def same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert list(a) == list(b)
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert np.array_equal(a[key], b[key])


def test_batches_are_those_of_the_pieces_that_they_are_made_of(folder):
    paths = [f"{folder}/part{i}.npz" for i in range(12)]
    for rows, options in (
        (Rows, {}),
        (Rows, {"order": "shuffled", "keys": ["y"]}),
        (Windows, {"length": 5}),
    ):
        pool = [rows(path, **options, random_state=3) for path in paths]
        mux = pescador.StochasticMux(pool, 4, 6, mode="single_active", random_state=3)
        pieces = Streamer(buffer_stream, mux, 8)
        ours = pescador.batches(f"{folder}/*.npz", 8, n_active=4, rate=6, random_state=3, **options)
        assert isinstance(ours, Streamer)
        same(list(ours(max_iter=20)), list(pieces(max_iter=20)))
        same(list(ours(max_iter=5)), list(ours(max_iter=5)))


def test_the_data_may_be_a_pattern_paths_or_arrays(folder):
    paths = [folder / f"part{i}.npz" for i in range(12)]
    arrays = [dict(np.load(path)) for path in paths]
    expected = list(pescador.batches(f"{folder}/*.npz", 8, random_state=0)(max_iter=9))
    for data in (folder / "*.npz", paths, map(str, paths), arrays, tuple(arrays)):
        same(list(pescador.batches(data, 8, random_state=0)(max_iter=9)), expected)
    for data in (arrays[3], lambda: arrays[3], arrays[3]["X"]):
        [batch] = pescador.batches(data, 8)(max_iter=1)
        assert (batch["data" if data is arrays[3]["X"] else "X"] == 3).all()


def test_an_exhaustive_run_gives_each_row_once_and_a_part_of_a_batch_if_asked(folder):
    stream = pescador.batches(
        f"{folder}/*.npz", 64, rate=None, mode="exhaustive", order="shuffled", partial=True
    )
    seen = np.concatenate([batch["y"] for batch in stream])
    assert sorted(seen) == [j + 100 * i for i in range(12) for j in range(20)]
    assert len(seen) % 64


def test_files_are_in_natural_order_and_lists_in_their_own(folder):
    names = [pathlib.Path(source.data).name for source in from_files(f"{folder}/*.npz")]
    assert names == [f"part{i}.npz" for i in range(12)]
    assert [source.data for source in from_files(["b.npz", "a.npz"])] == ["b.npz", "a.npz"]
    os.rename(folder / "part0.npz", folder / "part[0].npz")
    assert len(from_files(folder / "part[0].npz")) == 1
    (folder / "deeper").mkdir()
    os.link(folder / "part7.npz", folder / "deeper" / "part7.npz")
    assert len(from_files(folder / "**" / "part7.npz")) == 2


def test_a_pool_may_be_made_of_any_streamers(folder):
    def lines(path, keys):
        with np.load(path) as data:
            yield from ({key: data[key] for key in keys} for _ in range(2))

    pool = from_files(f"{folder}/*.npz", lambda path, **how: Streamer(lines, path, **how), keys="y")
    assert [len(list(streamer)) for streamer in pool] == [2] * 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing/*.npz", 8), "no file matches 'nothing/"),
        (([], 8), "data=.. is empty"),
        ((3, 8), "data=3"),
        (([3], 8), "data=3"),
        (([Rows("part1.npz")], 8), "data=Rows.'part1.npz'. is a stream already"),
        (("*.npz", 8, {"rate": None, "n_active": 4}), "4 of 12 files for ever"),
        (("*.npz", 8, {"order": "sequential"}), "rate=16 with order='sequential'"),
        (("*.npz", 0), "batch_size=0"),
        (("*.npz", 8.5), "batch_size=8.5"),
        (("*.npz", 8, {"order": "random "}), "order="),
        (("*.npz", 8, {"rate": -1}), "rate=-1"),
        (("*.npz", 8, {"length": 0}), "length=0"),
        ((["a.txt"], 8), "a.txt"),
        (("*.npz", 8, {"hop": 3}), "hop=3 is of windows"),
        ((b"*.npz", 8), "data=b"),
        ((["*.npz"], 8), "the path of one file"),
        (([".."], 8), "reads the files of a folder"),
    ],
)
def test_bad_arguments_are_refused_by_name(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    *positional, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ArgumentError, match=message):
        pescador.batches(*positional, **options)


def test_an_unknown_option_is_refused_as_one_of_batches():
    with pytest.raises(TypeError, match=r"batches\(\) got an unexpected .* 'nactive'"):
        pescador.batches("*.npz", 8, nactive=3)


def test_the_tree_shows_what_it_is_made_of(folder):
    shown = str(pescador.batches(f"{folder}/*.npz", 8, order="shuffled"))
    assert "buffer_stream" in shown
    assert "StochasticMux(12 streams" in shown
    assert "12 x Rows(.npz files, order='shuffled')" in shown


MEMORY = """
import json, sys
import pescador
from pescador._stores import mapped
from pescador.sources import files

def resident():
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return {name: int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}

batches = pescador.batches(sys.argv[1], 64, n_active=100, rate=4, random_state=0).iterate()
batch = next(batches)
row = sum(values[0].nbytes for values in batch.values())
before, seen = resident(), []
for _ in range(12):
    next(batches)
    now = resident()
    seen.append({name: now[name] - before[name] for name in now} | {"mapped": mapped()[1]})
print(json.dumps({"seen": seen, "drawn": 12 * 64 * row, "most": files.MOST_BYTES}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted on Linux")
def test_large_files_take_no_memory_but_what_was_drawn_and_a_bounded_part_of_them_is_mapped(
    tmp_path,
):
    row, n_bytes = 64, 10**8
    header = {"descr": "<f4", "fortran_order": False, "shape": (n_bytes // (4 * row), row)}
    for i in range(1_000):
        with open(tmp_path / f"{i}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            # All but the header is a hole, and takes no room.
            file.truncate(file.tell() + n_bytes)
    # As on the page on stores: what changed a moment ago is not kept.
    time.sleep(0.1)
    command = [sys.executable, "-c", MEMORY, tmp_path / "*.npy"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    size = (tmp_path / "0.npy").stat().st_size
    for now in found["seen"]:
        # The interpreter allocates 1 MiB at a time.
        assert now["RssAnon"] <= found["drawn"] + 2**20
        # A quarter of the memory or, if that is more, what the open visits need.
        assert now["mapped"] <= max(found["most"], 100 * size) + size
        assert now["RssFile"] <= now["mapped"]
