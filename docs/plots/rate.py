"""How varied a batch is, and how soon the pool has been seen."""

import matplotlib.pyplot as plt
import numpy as np

import pescador

N, BATCH = 400, 64


def forever(i):
    while True:
        yield i


pool = [pescador.Streamer(forever, i) for i in range(N)]


def mixed(n_active, rate, samples):
    mux = pescador.StochasticMux(pool, n_active, rate, mode="single_active", random_state=0)
    return np.fromiter(mux(max_iter=samples), int)


fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))

sizes = np.array([1, 2, 4, 8, 16, 32, 64, 128])
for rate, style in ((8, "C2^"), (64, "C1s"), (512, "C0o")):
    different = []
    for n_active in sizes:
        batches = mixed(n_active, rate, 400 * BATCH).reshape(-1, BATCH)
        different.append(np.mean([len(set(batch)) for batch in batches]))
    left.plot(sizes, different, style, label=f"rate {rate}")
left.plot(sizes, sizes * (1 - (1 - 1 / sizes) ** BATCH), "k--", linewidth=1, label="theory")
left.set(
    xscale="log",
    xticks=sizes,
    xticklabels=sizes,
    xlabel="n_active",
    ylabel="different streams in a batch of 64",
    ylim=(0, 64),
)
left.minorticks_off()
left.legend()

for rate, color in ((8, "C2"), (64, "C1"), (512, "C0")):
    samples = 60_000
    seen = mixed(32, rate, samples)
    first = np.sort(np.unique(seen, return_index=True)[1])
    right.plot(first, np.arange(1, len(first) + 1), color, label=f"rate {rate}")
    at = np.geomspace(10, samples, 300)
    opened = 32 + at / rate
    right.plot(at, N * (1 - (1 - 1 / N) ** opened), "k--", linewidth=1)
right.set(xscale="log", xlabel="samples", ylabel="streams seen, of 400", ylim=(0, N))
