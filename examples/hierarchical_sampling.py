"""
Balance an imbalanced set
=========================

Balance an imbalanced data set by sampling it in two levels.

Of the handwritten digits, some classes keep all of their samples and some only a few. Drawing
from all samples alike shows the classifier the large classes most of the time. Mixing first
within each class, then over the classes, shows it all of them equally often.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split

import pescador


def sample(x, label):
    """Give one sample again and again; in real life, windows of one recording."""
    while True:
        yield {"X": x, "y": label}


def train(stream):
    model = SGDClassifier(average=True, random_state=0)
    batches = pescador.Streamer(pescador.buffer_stream, stream, 32)
    for batch in batches(max_iter=150):
        model.partial_fit(batch["X"], batch["y"], classes=range(10))
    return model


def main():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.3, random_state=0, stratify=y)
    # All of the digits 0 to 4, but ten samples each of 5 to 9.
    classes = [np.flatnonzero(y == digit)[: None if digit < 5 else 10] for digit in range(10)]

    streams = [[pescador.Streamer(sample, X[i], y[i]) for i in rows] for rows in classes]
    flat = pescador.ShuffledMux([s for members in streams for s in members], random_state=0)

    within_class = [
        pescador.StochasticMux(members, n_active=8, rate=16, random_state=digit)
        for digit, members in enumerate(streams)
    ]
    hierarchical = pescador.ShuffledMux(within_class, random_state=0)

    print("training samples per class:", [len(rows) for rows in classes])
    for name, stream in (("all samples alike", flat), ("all classes alike", hierarchical)):
        score = balanced_accuracy_score(y_test, train(stream).predict(X_test))
        print(f"{name}: balanced accuracy {score:.3f}")


if __name__ == "__main__":
    main()
