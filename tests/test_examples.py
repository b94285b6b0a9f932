"""Every example runs by itself, does what it says, and cleans up."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
# What these do is looked at more closely below.
CLOSER = ("hierarchical_sampling.py", "out_of_core.py")


def accuracies(out):
    return [float(value) for value in re.findall(r"accuracy.*?(\d\.\d+)", out)]


def run(name, tmp_path, *options):
    return subprocess.Popen(
        [sys.executable, EXAMPLES / name, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    )


def output_of(name, tmp_path, *options):
    """What an example prints, that runs, learns and leaves nothing."""
    process = run(name, tmp_path, *options)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert list(tmp_path.iterdir()) == []
    assert accuracies(out)
    assert max(accuracies(out)) > 0.87
    return out


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - {*CLOSER}))
def test_an_example_runs_and_leaves_nothing(name, tmp_path):
    output_of(name, tmp_path)


def test_balancing_in_two_levels_beats_drawing_from_all_samples_alike(tmp_path):
    alike, balanced = accuracies(output_of("hierarchical_sampling.py", tmp_path))
    assert balanced > alike + 0.05


def test_the_digits_are_learned_out_of_core(tmp_path):
    out = output_of("out_of_core.py", tmp_path, "--no-progress")
    assert accuracies(out)[0] > 0.9
    assert "StochasticMux(300 streams, n_active=32, rate=16.0, mode='single_active')" in out
    assert re.search(r"samples per second: [\d,]+ with training, [\d,]+ without", out)


def test_ctrl_c_stops_the_demo_and_cleans_up(tmp_path):
    process = run("out_of_core.py", tmp_path, "--batches", "1000000", "--no-progress")
    deadline = time.monotonic() + 30
    while not any(tmp_path.rglob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
