"""
Sample memory-mapped files
==========================

Sample rows of .npy files that are memory-mapped, not loaded.

A read-only map is shared by all that read from it: starting a stream on
it costs no memory, and only the pages that samples come from are read
from disk.
"""

import itertools
import pathlib
import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

import pescador


def write(folder, X, y, copies):
    """Write more than we want to read: the digits, several times."""
    shape = (copies * len(X), X.shape[1])
    features = np.lib.format.open_memmap(
        folder / "X.npy", mode="w+", dtype=np.float32, shape=shape
    )
    for i in range(copies):
        features[i * len(X) : (i + 1) * len(X)] = X
    features.flush()
    np.save(folder / "y.npy", np.tile(y, copies))


def rows(X, y, start, stop):
    """Draw rows of one section of the file, others at each visit."""
    while True:
        i = np.random.randint(start, stop)
        yield {"X": X[i], "y": y[i]}


def main():
    np.random.seed(0)
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X / 16, y, test_size=0.3, random_state=0
    )
    with tempfile.TemporaryDirectory(prefix="pescador-") as folder:
        write(pathlib.Path(folder), X, y, copies=100)
        # mmap_mode="r" maps the files; nothing is read yet.
        features = np.load(pathlib.Path(folder, "X.npy"), mmap_mode="r")
        labels = np.load(pathlib.Path(folder, "y.npy"), mmap_mode="r")

        bounds = np.linspace(0, len(labels), 65, dtype=int)
        sections = [
            pescador.Streamer(rows, features, labels, start, stop)
            for start, stop in itertools.pairwise(bounds)
        ]
        mux = pescador.StochasticMux(
            sections, 8, rate=32, random_state=0
        )
        batches = pescador.Streamer(pescador.buffer_stream, mux, 64)

        model = SGDClassifier(random_state=0)
        for batch in batches(max_iter=300):
            model.partial_fit(batch["X"], batch["y"], classes=range(10))
        read = 300 * 64 * features.shape[1] * features.itemsize
        print(
            f"size of the file: {features.nbytes / 1e6:.0f} MB",
            end=", ",
        )
        print(f"sampled: {read / 1e6:.0f} MB")
    score = model.score(X_test, y_test)
    print(f"accuracy on held-out digits: {score:.3f}")


if __name__ == "__main__":
    main()
