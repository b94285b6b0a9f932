"""What prune_empty_streams saves, and what it may cost."""

import matplotlib.pyplot as plt
import numpy as np

import pescador

N, N_ACTIVE, RATE, SAMPLES = 200, 8, 8, 12_000


def run(prune, is_empty):
    """Return after how many samples each visit to an empty stream was, and what was sampled."""
    visits, seen = [], []

    def stream(i):
        if is_empty(i):
            visits.append(len(seen))
            return
        while True:
            yield i

    pool = [pescador.Streamer(stream, i) for i in range(N)]
    mux = pescador.StochasticMux(pool, N_ACTIVE, RATE, prune_empty_streams=prune, random_state=0)
    for i in mux(max_iter=SAMPLES):
        seen.append(i)
    return np.array(visits), np.array(seen)


fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))

at = np.linspace(0, SAMPLES, 200)
half = N // 2
for prune, color, theory in (
    (False, "C1", at / RATE),
    (True, "C0", half * (1 - np.exp(-at / RATE / half))),
):
    visits, _ = run(prune, lambda i: i % 2 == 0)
    left.plot(visits, np.arange(1, len(visits) + 1), color, label=f"prune_empty_streams={prune}")
    left.plot(at, theory, "k--", linewidth=1)
left.plot([], [], "k--", linewidth=1, label="theory")
left.set(
    title="Half of the streams are always empty",
    xlabel="samples",
    ylabel="visits to empty streams",
    ylim=(0, 600),
)
left.legend()

for prune, color in ((False, "C1"), (True, "C0")):
    rng = np.random.default_rng(0)
    visits, seen = run(prune, lambda i, rng=rng: rng.random() < 0.3)
    window = 1_000
    starts = np.arange(0, len(seen) - window, 100)
    right.plot(starts + window / 2, [len(set(seen[i : i + window])) for i in starts], color)
    if len(seen) < SAMPLES:
        right.axvline(len(seen), color=color, linestyle="--", linewidth=1)
        right.text(len(seen) + 200, 8, "the mux is over", color=color)
right.set(
    title="Each visit is empty with probability 0.3",
    xlabel="samples",
    ylabel="different streams in 1,000 samples",
    xlim=left.get_xlim(),
    ylim=(0, None),
)
