"""The limit of pipelines: a loop in C over arrays that are mapped once and kept."""

import ctypes
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import numpy as np
from data import written
from jobs import Skip

SOURCE = pathlib.Path(__file__).with_name("limit.c")


class Pipeline(ctypes.Structure):
    """As in limit.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("state", "n_files", "n_open", "n_starts", "rate")),
        ("n_keys", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("begins", "steps", "sizes", "is_open", "files", "left")
        ),
    )


def compiled():
    """The loop, compiled by this machine's compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform == "win32":
        raise Skip("needs a C compiler, as cc")

    def write(folder):
        command = [compiler, "-O3", "-shared", "-fPIC", "-o", folder / "limit.so", SOURCE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Skip(f"cc: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")

    return ctypes.CDLL(str(written(f"limit-{sysconfig.get_platform()}", write) / "limit.so"))


def batches_in_c(arrays, batch_size, n_open, rate=0, length=None):
    """Yield batches of random rows of arrays, or of windows of `length` rows, for ever.

    arrays: for each file, {key: array}, alike for all. They are the same memory each time.
    """
    library = compiled()
    first = arrays[0]
    n_rows = len(next(iter(first.values())))
    steps = np.array([array.strides[0] for array in first.values()])
    state = {
        "begins": np.array([[one[key].ctypes.data for one in arrays] for key in first], np.uintp),
        "steps": steps,
        "sizes": steps * (length or 1),
        "is_open": np.zeros(len(arrays), np.int8),
        "files": np.zeros(n_open, np.int64),
        "left": np.zeros(n_open, np.int64),
    }
    pipeline = Pipeline(
        state=1,
        n_files=len(arrays),
        n_open=n_open,
        n_starts=n_rows - (length or 1) + 1,
        rate=rate,
        n_keys=len(first),
        **{name: array.ctypes.data for name, array in state.items()},
    )
    cut = () if length is None else (length,)
    batch = {
        key: np.zeros((batch_size, *cut, *array.shape[1:]), array.dtype)
        for key, array in first.items()
    }
    places = np.array([array.ctypes.data for array in batch.values()], np.uintp)
    pointer, to = ctypes.byref(pipeline), ctypes.c_void_p(places.ctypes.data)
    size = ctypes.c_int64(batch_size)
    library.start(pointer)
    fill = library.fill
    while True:
        fill(pointer, to, size)
        yield batch
