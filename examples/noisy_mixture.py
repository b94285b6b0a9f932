"""
Mix clean and noisy samples
===========================

Learn from a mixture of clean and noisy samples.

Measurements of breast cancer tumours (shipped with scikit-learn) come
in two streams, one as they are and one with noise added. A ShuffledMux
mixes the two in chosen shares, and a linear classifier is trained on
each mixture.
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import pescador


@pescador.streamable
def samples(X, y, noise, seed):
    """Draw samples for ever, with Gaussian noise on the features."""
    rng = np.random.default_rng(seed)
    while True:
        i = rng.integers(len(X))
        added = noise * rng.standard_normal(X.shape[1])
        yield {"X": X[i] + added, "y": y[i]}


def main():
    X, y = load_breast_cancer(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.3, random_state=0, stratify=y
    )
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)

    clean = samples(X, y, noise=0.0, seed=1)
    noisy = samples(X, y, noise=4.0, seed=2)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mux = pescador.ShuffledMux(
            [clean, noisy], weights=[1 - share, share], random_state=0
        )
        batches = pescador.Streamer(pescador.buffer_stream, mux, 32)
        model = SGDClassifier(alpha=1e-2, random_state=0)
        for batch in batches(max_iter=200):
            model.partial_fit(batch["X"], batch["y"], classes=[0, 1])
        score = model.score(X_test, y_test)
        print(f"{share:4.0%} noisy: accuracy {score:.3f}")


if __name__ == "__main__":
    main()
