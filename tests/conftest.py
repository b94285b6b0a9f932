"""What every test may use: each mux class on both of its paths, and a watch on leftovers."""

import contextlib
import gc
import multiprocessing
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import aged

import effort
import pescador
from pescador import _snapshots
from pescador._channel import process

# Not tests: read by mypy, and run by tests.
collect_ignore_glob = [
    "typing/*",
    "parity/help/*",
    "parity/fetch.py",
    "frameworks/ranks.py",
    "frameworks/runs.py",
    "on_every_python.py",
]

# What runs in the background of a script is made to ignore Ctrl-C, and so would processes started
# by tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is, no more.
settings.register_profile(
    "untimed",
    max_examples=100 * effort.TIMES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("untimed")


def pytest_collection_finish():
    """Spare the collections of garbage the modules and tests, which live as long as the process."""
    # Hypothesis first looks for what refers to its random numbers. On Python 3.15 it would not find
    # that once it is frozen, and warn.
    settings(max_examples=1, database=None)(given(st.none())(lambda _: None))()
    gc.collect()
    gc.freeze()


MUXES = ("StochasticMux", "ShuffledMux", "RoundRobinMux", "ChainMux")


def with_hooks(cls):
    """A subclass that changes nothing, but overrides a hook, and so runs at Python speed."""

    class Hooked(cls):
        def _on_stream_exhausted(self, idx):
            super()._on_stream_exhausted(idx)

    Hooked.__name__ = Hooked.__qualname__ = f"Hooked{cls.__name__}"
    return Hooked


class Classes:
    """The mux classes of one path, under their own names."""

    def __init__(self, wrap):
        for name in MUXES:
            setattr(self, name, wrap(getattr(pescador, name)))


@pytest.fixture(params=["compiled", "hooks"])
def muxes(request):
    """The mux classes: a promise is kept by the engines and by the hook methods alike."""
    return Classes(with_hooks if request.param == "hooks" else lambda cls: cls)


@pytest.fixture(params=[m for m in ("fork", "forkserver") if m in process.METHODS])
def start_method(request, monkeypatch):
    """The start method of workers where a test names none: promises are kept under each."""
    monkeypatch.setattr(process, "default_method", lambda: request.param)
    return request.param


@pytest.fixture
def all_large():
    """Arrays of any size are taken for large, and get snapshots."""
    before = _snapshots.set_large(1)
    yield
    _snapshots.set_large(before)


@pytest.fixture
def pair():
    """Both ends of a channel's memory; tests that use it are skipped where there is none."""
    import channel

    with contextlib.closing(channel.Pair()) as made:
        yield made


@pytest.fixture
def folder(tmp_path):
    """Twelve files of 20 rows, whose numbers sort in another order than their names."""
    for i in range(12):
        arrays = {"X": np.full((20, 3), i, np.float32), "y": np.arange(20) + 100 * i}
        np.savez(tmp_path / f"part{i}.npz", **arrays)
    return tmp_path


@pytest.fixture
def npz(tmp_path):
    """A file of ten rows that was not changed lately."""
    path = tmp_path / "a.npz"
    np.savez(path, X=np.arange(30, dtype=np.float32).reshape(10, 3), y=np.arange(10))
    return aged(path)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No test leaves a child process behind."""
    yield
    assert not multiprocessing.active_children()
