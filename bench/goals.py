"""What is asked of the figures: goals, the cases that the README shows, those that are counted."""

from dataclasses import dataclass

from cases import IMAGE
from contestants import OURS
from frameworks import PIPELINES


@dataclass
class Goal:
    """`slow` is to take at least `ratio` times as long as `fast` (or, if `most`, at most)."""

    text: str
    slow: tuple[str, str]
    fast: tuple[str, str]
    ratio: float
    most: bool = False


@dataclass
class Pace:
    """Ours is to take at most so many seconds for a unit of work, on a machine of our own."""

    text: str
    identifier: str
    seconds: float
    # The case that it may take so much longer than; None for nothing.
    over: str | None = None
    by: str = OURS


def than(contestant, identifier, ratio, text=None):
    """A goal for ours against `contestant` on the same case."""
    return Goal(text or identifier, (identifier, contestant), (identifier, "ours"), ratio)


# Those that also read files in two workers.
AHEAD = ("torch", "torch-map", "grain", "tf.data", "spdl", "spdl-process")

GOALS = [
    than("peer", "shuffled/n=10", 120),
    than("peer", "shuffled/n=1000", 170),
    than("peer", "shuffled/n=10000", 600),
    than("hand", "shuffled/n=10", 2),
    than("hand", "shuffled/n=1000", 1.3),
    than("peer", "stochastic/n=1000", 110),
    than("peer", "stochastic/mode=single_active", 110),
    than("peer", "stochastic/n_active=10000/n=20000", 350),
    Goal(
        "stochastic/n=1000000 against n=1000",
        ("stochastic/n=1000000", "ours"),
        ("stochastic/n=1000", "ours"),
        2,
        most=True,
    ),
    than("peer", "round_robin/n=1000", 250),
    than("peer", "tree/depth=2", 150),
    than("peer", "chain/n=1000", 30),
    than("peer", "mortal/mux=shuffled", 30),
    than("peer", "mortal/mux=stochastic", 30),
    than("peer", "first/mux=stochastic", 30),
    than("peer", "first/mux=shuffled", 30),
    than("peer", "shared_argument/kind=array/n=50/n_active=5", 80),
    than("peer", "shared_argument/kind=array/n=50/n_active=5/each=True", 1),
    than("peer", "file_names", 200),
    than("peer", "iterable/kind=list", 50),
    than("peer", "batches/size=64/label=True", 5),
    than("peer", "batches/size=512", 4),
    than("peer", "batches_of_scalars/kind=float", 4),
    than("peer", f"batches/size={IMAGE}", 2),
    Goal(
        f"batches/size={IMAGE} against memcpy",
        (f"batches/size={IMAGE}", "limit"),
        (f"batches/size={IMAGE}", "ours"),
        0.7,
    ),
    than("peer", "batches/size=64/axis=0", 3),
    than("peer", "batches_of_a_mux/n=1000", 40),
    than("peer", "transport/size=64", 6),
    than("peer", "transport/size=32768", 4),
    than("peer", "transport/size=40000000", 3.5),
    than("torch", "transport/size=40000000", 2),
    Goal(
        "40 MB against memcpy",
        ("transport/size=40000000", "ours"),
        ("transport/size=40000000", "limit"),
        2,
        most=True,
    ),
    than("peer", "first_item/size=64", 1),
    Goal("bound against islice", ("bound", "ours"), ("bound", "hand"), 1.6, most=True),
    than("peer", "job/rate=16", 100),
    than("peer", "job/rate=8", 100),
    # 1.5 million samples a second where the loop in C gives 7.
    Goal(
        "job/rate=16 against C", ("job/rate=16", "ours"), ("job/rate=16", "limit"), 4.67, most=True
    ),
    than("peer", "in_memory", 200),
    Goal("windows against memcpy", ("windows", "limit"), ("windows", "ours"), 0.6),
    than("ours-function", "chunked/kind=hdf5", 5),
    than("ours-function", "chunked/kind=zarr", 5),
    Goal(
        "two workers against none, computing",
        ("parallel_compute/workers=0", "ours"),
        ("parallel_compute/workers=2", "ours"),
        1.8,
    ),
    Goal(
        "opening ahead in threads",
        ("parallel_opening/opening=0", "ours"),
        ("parallel_opening/opening=20", "ours"),
        0.9,
    ),
    Goal(
        "two workers against none, compressed files",
        ("parallel_npz/workers=0", "ours"),
        ("parallel_npz/workers=2", "ours"),
        1.6,
    ),
    Goal(
        "64 workers against 2, time of the consumer",
        ("parallel_many/workers=64", "ours"),
        ("parallel_many/workers=2", "ours"),
        1.1,
        most=True,
    ),
    *(than(name, "parallel_npz/workers=2", 1) for name in AHEAD),
    *(
        Goal(f"in torch, {kind}", (case, "torch"), (case, "ours-torch"), 1)
        for kind in PIPELINES
        for case in [f"torch_pipeline/kind={kind}"]
    ),
    Goal(
        "consumer on Ray, 1 MB against memcpy",
        ("ray_consumer/size=1000000", "ours-ray"),
        ("ray_consumer/size=1000000", "limit"),
        1.2,
        most=True,
    ),
    Goal(
        "two nodes of Ray against one, sleeping",
        ("ray_nodes/kind=sleeping/workers=1", "ours-ray"),
        ("ray_nodes/kind=sleeping/workers=2", "ours-ray"),
        1.8,
    ),
]

PACES = [
    Pace("in_memory", "in_memory", 200e-9),
    Pace("a visit to a file that was opened before", "job/rate=1", 5e-6),
    Pace("exchange of the global states", "seeds/seeded=True", 0.4e-6, over="seeds"),
    Pace(
        "waits where streams sleep as they open",
        "parallel_waits/opening=20",
        2e-3,
        over="parallel_waits/opening=0",
    ),
    Pace("consumer, StochasticMux", "parallel_consumer/mux=stochastic", 1e-6),
    Pace("consumer, ShuffledMux", "parallel_consumer/mux=shuffled", 1e-6),
    Pace("consumer, a batch of images", "parallel_images", 50e-6),
    Pace("plan, StochasticMux", "parallel_plan/mux=stochastic", 0.3e-6),
    Pace("plan, ShuffledMux", "parallel_plan/mux=shuffled", 0.3e-6),
    Pace("a batch of two keys as tensors", "torch_items", 20e-6, by="ours-torch"),
    Pace("consumer on Ray, 1 KB", "ray_consumer/size=1000", 5e-6, by="ours-ray"),
]

# What the README shows: identifiers, and what they are in its words.
MAIN = {
    "streamer": "`Streamer.iterate`",
    "shuffled/n=10": "`ShuffledMux`, 10 streams",
    "shuffled/n=1000": "`ShuffledMux`, 1,000 streams",
    "shuffled/n=10000": "`ShuffledMux`, 10,000 streams",
    "stochastic/n=1000": "`StochasticMux`, 100 of 1,000 open, rate 8",
    "stochastic/n_active=10000/n=20000": "`StochasticMux`, 10,000 of 20,000 open, rate 8",
    "round_robin/n=1000": "`RoundRobinMux`, 1,000 streams",
    "chain/n=1000": "`ChainMux`, streams of 3 samples",
    "tree/depth=2": "10 `ShuffledMux`es of 10 under one",
    "first/mux=stochastic": "first sample of a mux of 30,000",
    "batches/size=64": "`buffer_stream`, 64 items of 64 B",
    "batches/size=602112": "`buffer_stream`, 64 items of 602 kB",
    "job/rate=16": "`pescador.batches`, rows of 1,000 `.npz` files",
    "job_once": "the same, of files that were never visited before",
    "windows": "`pescador.batches`, windows of 64 KB of `.npy` files",
    "transport/size=64": "`ZMQStreamer`, items of 64 B",
    "transport/size=40000000": "`ZMQStreamer`, items of 40 MB",
}

# What callgrind counts: the hot paths, none of them with another process.
CORE = [
    "streamer",
    "bound",
    "shuffled/n=10",
    "shuffled/n=1000",
    "shuffled/n=1000/weighted=True",
    "stochastic/n=1000",
    "stochastic/mode=single_active",
    "stochastic/dist=poisson",
    "stochastic/n_active=1000/n=20000",
    "round_robin/n=1000",
    "tree/depth=2",
    "chain/n=1000",
    "mortal/mux=shuffled",
    "mortal/mux=stochastic",
    "batches/size=64/label=True",
    "batches/size=64/axis=0",
    "batches_of_scalars/kind=float",
    "job/rate=16",
    "job/rate=1",
    "in_memory",
]
