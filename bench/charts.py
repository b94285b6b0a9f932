"""The charts of a summary: cost against the number of streams, and bytes a second against size."""

import sys

from contestants import CONTESTANTS

# The chart that is published.
CHART = "shuffled_n"

# Okabe and Ito's colours, which the colour-blind can tell apart, and some more; the first two are
# for ours and the peer alone. Markers say the same again.
COLORS = (
    *("#0072B2", "#D55E00", "#56B4E9", "#009E73", "#CC79A7"),
    *("#E69F00", "#999999", "#A52A2A", "#7F3C8D", "#1B4D3E"),
)
MARKERS = "os^vDPXd*<>hH8p"

NEXT, MEMCPY = "limit: bare generator", "limit: memcpy"
# By file: case, parameter along x, parameters that are fixed, limit, title, what x is.
CHARTS = {
    CHART: ("shuffled", "n", (), NEXT, "Mixing all of n streams, uniformly", "streams"),
    "stochastic_n": (
        "stochastic",
        "n",
        (),
        NEXT,
        "StochasticMux, 100 of n streams open",
        "streams",
    ),
    "stochastic_n_active": (
        "stochastic",
        "n_active",
        ("n",),
        NEXT,
        "StochasticMux",
        "active streams",
    ),
    "batches_size": ("batches", "size", (), MEMCPY, "Batches of 64 items", "bytes per item"),
    "transport_size": ("transport", "size", (), MEMCPY, "Between processes", "bytes per item"),
}


def style(name):
    """The colour and the marker of a contestant."""
    i = [it for it in CONTESTANTS if it != "limit"].index(name)
    color = i if i < 2 else 2 + (i - 2) % (len(COLORS) - 2)
    return COLORS[color], MARKERS[i % len(MARKERS)]


def series(summary, name, x, fixed):
    """Points (x, low, middle, high) by contestant: nanoseconds, or GB a second if bytes count."""
    lines = {}
    for identifier, found in summary["cases"].items():
        params = found["params"]
        if identifier.split("/")[0] == name and x in params and set(params) == {x, *fixed}:
            for contestant, entry in found["by"].items():
                y = [
                    found["bytes"] / seconds / 1e9 if found.get("bytes") else seconds * 1e9
                    for seconds in entry["seconds"]
                ]
                lines.setdefault(contestant, []).append((params[x], *y))
    return {name: sorted(lines[name]) for name in CONTESTANTS if name in lines}


def draw(plt, lines, limit, title, label, path):
    fig, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name, points in lines.items():
        xs, low, middle, high = zip(*points, strict=True)
        if name == "limit":
            ax.plot(xs, middle, color="black", linestyle="--", linewidth=1.2, label=limit)
            continue
        color, marker = style(name)
        width = 2.4 if name == "ours" else 1.4
        ax.plot(xs, middle, color=color, marker=marker, linewidth=width, label=name)
        ax.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
    unit = "GB per second" if limit == MEMCPY else "nanoseconds per sample"
    ax.set(xscale="log", yscale="log", title=title, xlabel=label, ylabel=unit)
    ax.grid(which="major", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside right upper", frameon=False)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def draw_all(summary, folder, files=tuple(CHARTS)):
    """Draw those of the charts that there are at least two points for."""
    try:
        import matplotlib
    except ImportError:
        return print("no charts: matplotlib is not installed here", file=sys.stderr)
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    # Text stays text: the same chart is the same file on any machine, and a short one.
    plt.rcParams |= {"svg.hashsalt": "pescador", "svg.fonttype": "none"}
    for file in files:
        name, x, fixed, *labels = CHARTS[file]
        lines = series(summary, name, x, fixed)
        if any(len(points) > 1 for points in lines.values()):
            draw(plt, lines, *labels, folder / f"{file}.svg")
            print(f"drawn: {folder / file}.svg", file=sys.stderr)
