"""How many samples a stream gives, and over how long a time, for each dist: ours beside theory."""

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import pescador

RATE, N_ACTIVE, POOL, DRAWS = 16, 4, 2_000, 30_000
P = 1 / N_ACTIVE


def forever(i):
    while True:
        yield i


class Watched(pescador.StochasticMux):
    """Notes which stream each draw falls on, those that find it over included."""

    drawn = ()

    def _next_sample_index(self):
        slot = super()._next_sample_index()
        self.drawn.append(self.stream_idxs_[slot])
        return slot


def visits(dist):
    """Return the samples of each visit, and the draws from its first sample to its last."""
    pool = [pescador.Streamer(forever, i) for i in range(POOL)]
    mux = Watched(pool, N_ACTIVE, RATE, mode="exhaustive", dist=dist, random_state=0)
    Watched.drawn = []
    samples = iter(mux)
    while len(Watched.drawn) < DRAWS:
        next(samples)
    at = {}
    for draw, stream in enumerate(Watched.drawn):
        at.setdefault(stream, []).append(draw)
    # Those that were open at the beginning or the end are cut short. The last draw gave nothing.
    whole = [places for places in at.values() if places[0] > 500 and places[-1] < DRAWS - 500]
    counts = np.array([len(places) - 1 for places in whole])
    return counts, np.array([places[-2] - places[0] + 1 for places in whole])


def spread_over(counts, gaps):
    """The distribution of 1 + a sum of (count - 1) geometric gaps between samples."""
    mass = np.zeros(len(gaps))
    for count, weight in enumerate(counts):
        if weight > 1e-12:
            mass += weight * (
                (gaps == 0) if count == 0 else stats.nbinom.pmf(gaps - count, count, P)
            )
    return mass


fig, axes = plt.subplots(2, 3, figsize=(9.5, 5), sharex="row", sharey="row")
more = np.arange(60)
theory = {
    "constant": (more == RATE - 1).astype(float),
    "binomial": stats.binom.pmf(more, int((RATE - 1) / (1 - P)), 1 - P),
    "poisson": stats.poisson.pmf(more, RATE - 1),
}
length = np.arange(200)
for (dist, mass), above, below in zip(theory.items(), axes[0], axes[1], strict=True):
    counts, intervals = visits(dist)
    above.hist(counts, np.arange(0.5, 36), density=True, color="C0", alpha=0.4, label="measured")
    above.plot(1 + more, mass, "C1.-", markersize=4, linewidth=1, label="theory")
    above.set(title=f"{dist}: mean {counts.mean():.1f}, variance {counts.var():.1f}")
    below.hist(intervals, np.arange(0, 200, 5), density=True, color="C0", alpha=0.4)
    below.plot(1 + length, spread_over(mass, length), "C1", linewidth=1.4)
    below.set(title=f"mean {intervals.mean():.0f}, variance {intervals.var():.0f}", xlim=(0, 150))
axes[0, 0].set(xlim=(0, 35), ylim=(0, 0.4), ylabel="share of visits")
axes[1, 0].set(ylabel="share of visits")
for ax in axes[0]:
    ax.set(xlabel="samples in a visit")
for ax in axes[1]:
    ax.set(xlabel="draws, from first sample to last")
axes[0, 0].legend(loc="upper right")
