"""The share of samples that comes from each stream, against its weight."""

import matplotlib.pyplot as plt
import numpy as np

import pescador

N, N_ACTIVE, RATE, SAMPLES = 10, 4, 16, 400_000
WEIGHTS = np.arange(1, N + 1)


def forever(i):
    while True:
        yield i


def shares(mux):
    return np.bincount(np.fromiter(mux(max_iter=SAMPLES), int), minlength=N) / SAMPLES


pool = [pescador.Streamer(forever, i) for i in range(N)]
fig, ax = plt.subplots(figsize=(7, 3.9))
ax.plot(WEIGHTS, WEIGHTS / WEIGHTS.sum(), "k--", linewidth=1, label="the weights")
ax.plot(WEIGHTS, np.full(N, 1 / N), "k:", linewidth=1.4, label="1 / n")
shuffled = pescador.ShuffledMux(pool, weights=WEIGHTS, random_state=0)
ax.plot(WEIGHTS, shares(shuffled), "C0o", label="ShuffledMux")
for mode, style in (("with_replacement", "C1s"), ("single_active", "C2^")):
    mux = pescador.StochasticMux(pool, N_ACTIVE, RATE, weights=WEIGHTS, mode=mode, random_state=0)
    ax.plot(WEIGHTS, shares(mux), style, label=f"StochasticMux, {mode}")
ax.set(
    xlabel="weight of the stream",
    ylabel="share of the samples",
    ylim=(0, 0.2),
    xticks=WEIGHTS,
    title=f"{N} streams; in the StochasticMuxes, {N_ACTIVE} open and rate {RATE}",
)
ax.legend(loc="upper left")
