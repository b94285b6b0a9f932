"""`python -m pescador`: what is in files, and how fast batches come from them."""

import json
import subprocess
import sys

import numpy as np
import pytest


def run(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "pescador", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done


def test_describe_says_what_is_there_and_which_files_differ(folder):
    pattern = f"{folder}/*.npz"
    found = json.loads(run("describe", pattern, "--json").stdout)
    assert found["files"] == 12
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*.npz"))
    assert found["keys"] == [
        {
            "key": "X",
            "dtype": "float32",
            "shape": [3],
            "rows": {"least": 20, "most": 20, "all": 240},
            "bytes": 240 * 12,
        },
        {
            "key": "y",
            "dtype": "int64",
            "shape": [],
            "rows": {"least": 20, "most": 20, "all": 240},
            "bytes": 240 * 8,
        },
    ]
    assert not found["differ"]
    assert not found["damaged"]
    np.savez(folder / "part3.npz", X=np.zeros((20, 4), np.float32), z=np.zeros(20))
    (folder / "part5.npz").write_bytes(b"no archive")
    done = run("describe", pattern, code=1)
    assert "lacks y, also has z, X is float32[4]" in done.stdout
    assert "part5.npz" in done.stdout.partition("1 file with an error:")[2]
    assert done.stderr == ""


def test_lengths_that_each_file_has_of_its_own_are_no_difference(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.zeros(4))
    for i in range(5):
        np.savez(tmp_path / f"b{i}.npz", X=np.zeros((5, 3, i + 1)), y=np.zeros(5))
    found = json.loads(run("describe", tmp_path / "*.npz", "--json").stdout)
    assert list(found["differ"].values()) == ["lacks X, lacks y, also has z"]
    X, y = found["keys"]
    assert (X["shape"], X["rows"]["all"], X["bytes"]) == ([3, [1, 5]], 25, 5 * 3 * 15 * 8)
    assert (y["shape"], y["rows"]["all"]) == ([], 25)
    assert "3 x (1 to 5)" in run("describe", tmp_path / "*.npz").stdout


def test_describe_names_files_whose_arrays_have_no_rows_in_common(tmp_path):
    for name, n in (("a", 5), ("b", 4), ("c", 0)):
        np.savez(tmp_path / f"{name}.npz", X=np.zeros((5 if n else 0, 3)), y=np.zeros(n), rate=1)
    shown = run("describe", tmp_path / "*.npz").stdout
    assert "2 files with keys of different lengths, or of none:" in shown
    assert "b.npz: rows: 5 of X, 4 of y" in shown
    assert "c.npz: no rows" in shown


def test_measure_says_how_fast_batches_come_here_and_elsewhere(folder):
    done = run("measure", f"{folder}/*.npz", "--seconds", "0.3", "--rate", "8", "--json")
    found = json.loads(done.stdout)
    assert found["samples_per_second"] > 0
    per_sample = found["bytes_per_second"] / found["samples_per_second"]
    assert per_sample == pytest.approx(3 * 4 + 8)
    assert 0 <= found["share_opening"] <= 1
    settings = {(other["rate"], other["n_active"]) for other in found["others"]}
    assert settings == {(32, 12), (2, 12), (8, 3)}
    table = run("measure", f"{folder}/*.npz", "--seconds", "0.2", "--length", "4").stdout
    assert "time spent opening files" in table
    table = run("measure", f"{folder}/*.npz", "--seconds", "0.2", "--rate", "none").stdout
    assert "samples a second" in table
    assert "other settings" not in table
    # However late the first batch comes.
    assert "samples a second" in run("measure", f"{folder}/*.npz", "--seconds", "1e-9").stdout


def test_commands_say_what_is_wrong(folder):
    assert "no file matches" in run("describe", "nothing/*.npz", code=2).stderr
    done = run("measure", f"{folder}/*.npz", "--seconds", "-1", code=2)
    assert "-1 must be a number of seconds above 0" in done.stderr
    assert "n_active=0" in run("measure", f"{folder}/*.npz", "--n-active", "0", code=2).stderr
    assert "mode=" in run("measure", f"{folder}/*.npz", "--mode", "quick", code=2).stderr
    assert (
        "fewer samples"
        in run(
            "measure", f"{folder}/*.npz", "--mode", "exhaustive", "--batch-size", "999", code=2
        ).stderr
    )
