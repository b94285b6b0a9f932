"""
Train out of core
=================

Train on data that is never in memory as a whole.

The handwritten digits that scikit-learn ships are written as several
hundred .npz files, each with samples of a single digit, as data sets of
many recordings are. pescador.batches keeps a few of the files open and
mixes their samples into minibatches, a ZMQStreamer does all of that in
a background process, and a linear classifier learns from what arrives.
"""

import argparse
import contextlib
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import pescador


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, default, what in [
        ("--shards", 300, "number of files"),
        ("--open", 32, "files open at a time"),
        ("--rate", 16.0, "samples per visit to a file"),
        ("--batch-size", 32, "samples in a batch"),
        ("--batches", 600, "batches to learn from"),
        ("--seed", 0, "of all random numbers"),
    ]:
        parser.add_argument(
            option,
            type=type(default),
            default=default,
            help=f"{what} (%(default)s)",
        )
    parser.add_argument(
        "--no-progress",
        action="store_true",
        help="show no progress bar",
    )
    return parser.parse_args()


def write_shards(folder, X, y, n_shards):
    """Write the samples, sorted by digit, as `n_shards` files."""
    order = np.argsort(y, kind="stable")
    for i, rows in enumerate(np.array_split(order, n_shards)):
        np.savez(folder / f"{i}.npz", X=X[rows], y=y[rows])


def samples_per_second(stream, use):
    """Hand each batch to a function, and say how fast that went."""
    start = time.perf_counter()
    n_samples = 0
    for batch in stream:
        use(batch)
        n_samples += len(batch["y"])
    return n_samples / (time.perf_counter() - start)


def peak_memory():
    """The most MB that this process and its largest child have used."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return [
        resource.getrusage(who).ru_maxrss / unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]


def main():
    args = parse_arguments()
    digits = load_digits()
    X, X_test, y, y_test = train_test_split(
        digits.data / 16,
        digits.target,
        test_size=0.25,
        random_state=args.seed,
    )
    classifier = SGDClassifier(random_state=args.seed)

    def learn(batch):
        X, y = batch["X"], batch["y"]
        classifier.partial_fit(X, y, classes=range(10))

    with tempfile.TemporaryDirectory(prefix="pescador-") as folder:
        write_shards(pathlib.Path(folder), X, y, args.shards)
        batches = pescador.batches(
            f"{folder}/*.npz",
            args.batch_size,
            n_active=args.open,
            rate=args.rate,
            random_state=args.seed,
        )
        print(batches)

        background = pescador.ZMQStreamer(batches)
        stream = background.iterate(args.batches)
        with contextlib.closing(stream):
            progress = tqdm(
                stream,
                total=args.batches,
                unit=" batches",
                disable=args.no_progress or None,
            )
            training = samples_per_second(progress, learn)
        # The same once more, in this process, without learning.
        reading = samples_per_second(
            batches.iterate(args.batches), lambda batch: None
        )

    score = classifier.score(X_test, y_test)
    here, worker = peak_memory()
    print(f"accuracy on {len(y_test)} held-out digits: {score:.3f}")
    print(f"samples per second: {training:,.0f} with training", end="")
    print(f", {reading:,.0f} without, in this process")
    print(f"peak memory: {here:.0f} MB here", end=", ")
    print(f"{worker:.0f} MB in the background process")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
