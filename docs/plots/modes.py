"""Which streams are open over time, in each mode."""

import matplotlib.pyplot as plt
import numpy as np

import pescador

N, N_ACTIVE, RATE, SAMPLES = 24, 4, 12, 400


def forever(i):
    while True:
        yield i


fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), sharey=True)
pool = [pescador.Streamer(forever, i) for i in range(N)]
for ax, mode in zip(axes, ("with_replacement", "single_active", "exhaustive"), strict=True):
    mux = pescador.StochasticMux(pool, N_ACTIVE, RATE, mode=mode, random_state=3)
    seen = np.fromiter(mux(max_iter=SAMPLES), int)
    ax.plot(np.arange(len(seen)), seen, "|", markersize=5, markeredgewidth=0.8)
    if len(seen) < SAMPLES:
        ax.axvline(len(seen), color="C1", linestyle="--", linewidth=1)
        ax.text(len(seen) + 6, 0, "over", color="C1")
    ax.set(title=mode, xlabel="samples", xlim=(0, SAMPLES))
axes[0].set(ylabel="stream")
