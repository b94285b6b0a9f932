"""Who takes part, and the environment that each needs.

An environment is a folder under ``bench/envs``, made once and then kept until what it is made
from changes. What cannot be installed is reported with the reason, and the rest goes on.

    python bench/contestants.py              make the light ones
    python bench/contestants.py all          make all
    python bench/contestants.py ours peer    make these
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

BENCH = pathlib.Path(__file__).resolve().parent
ROOT = BENCH.parent
ENVS = BENCH / "envs"

# The names under which a package of pescador's API is measured.
OURS, PEER, FUNCTION = "ours", "peer", "ours-function"
API = (OURS, PEER, FUNCTION)


# The environment variable that tells workers where the files of a run are; see data.py.
FILES = "PESCADOR_BENCH_FILES"


@dataclass
class Env:
    """What is installed: requirements for pip, in which '.' is this repository."""

    requires: tuple[str, ...]
    # Not light: a large download, so not part of the short profile unless made or asked for.
    light: bool = True


@dataclass
class Contestant:
    """One column of the table."""

    env: str
    # Imported before anything is timed; the first names the version that is reported.
    imports: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ("numpy",)
    note: str = ""


# The end-to-end case trains a classifier, so that ours and the peer need scikit-learn; ours, and
# those in torch, read HDF5 and Zarr. One release of torch is named: the one that the torch columns
# were written against.
TORCH = "torch==2.13.0"
STORES = ("h5py>=3.11", "zarr>=3")
ENV = {
    "ours": Env((".", "scikit-learn>=1.5", *STORES)),
    "peer": Env(("pescador==3.0.0", "scikit-learn>=1.5")),
    "more-itertools": Env(("more-itertools", "numpy")),
    "webdataset": Env(("webdataset", "numpy")),
    "grain": Env(("grain", "numpy")),
    "torch": Env((TORCH, "torchdata", "numpy", *STORES), light=False),
    "spdl": Env(("spdl-core", "numpy")),
    "ours-torch": Env((".", TORCH, *STORES), light=False),
    "ours-ray": Env((".", "ray>=2.40"), light=False),
    # lhotse imports urllib3 without asking for it.
    "lhotse": Env((TORCH, "lhotse", "urllib3", "numpy"), light=False),
    "datasets": Env(("datasets", "numpy"), light=False),
    "tensorflow": Env(("tensorflow-cpu", "numpy"), light=False),
    # fairseq2n names its release of torch, of which the package index has the CUDA build only.
    "fairseq2": Env(("fairseq2", "numpy"), light=False),
    # Not a contestant: where the others are compared, and the charts drawn.
    "report": Env(("matplotlib>=3.8", "numpy", "tqdm>=4.66")),
}

CONTESTANTS = {
    "limit": Contestant(
        "ours",
        note="a bare generator's next, memcpy into a warm buffer, or a loop in C over mapped files",
    ),
    "ours": Contestant("ours", ("pescador",), ("pescador", "numpy", "pyzmq")),
    "peer": Contestant("peer", ("pescador",), ("pescador", "numpy", "pyzmq")),
    "ours-function": Contestant(
        "ours",
        ("pescador",),
        ("pescador", "numpy"),
        "ours, with the function that the peer is given",
    ),
    "ours-torch": Contestant(
        "ours-torch",
        ("pescador.torch",),
        ("pescador", "torch", "numpy"),
        "ours, as a data set of PyTorch",
    ),
    "ours-ray": Contestant(
        "ours-ray",
        ("pescador.ray", "ray"),
        ("pescador", "ray", "numpy"),
        "ours, with the workers in actors of Ray",
    ),
    "hand": Contestant("ours", note="the loop that one would write in Python without a library"),
    "hand-blocks": Contestant("ours", note="by hand as well, by those who count nanoseconds"),
    "more-itertools": Contestant(
        "more-itertools", ("more_itertools",), ("more-itertools",), "has no weights"
    ),
    "torchdata": Contestant("torch", ("torchdata.nodes",), ("torchdata", "torch")),
    "lhotse": Contestant("lhotse", ("lhotse",), ("lhotse",)),
    "lhotse-infinite": Contestant(
        "lhotse", ("lhotse",), ("lhotse",), "opens streams with replacement: some twice, some not"
    ),
    "grain": Contestant("grain", ("grain",), ("grain",), "in fixed proportions, not at random"),
    "grain-select": Contestant("grain", ("grain",), ("grain",), "tables, not streams"),
    "webdataset": Contestant("webdataset", ("webdataset",), ("webdataset",)),
    "datasets": Contestant("datasets", ("datasets",), ("datasets",), "of Hugging Face"),
    "datasets-map": Contestant("datasets", ("datasets",), ("datasets",), "tables, not streams"),
    "tf.data": Contestant(
        "tensorflow",
        ("tensorflow",),
        ("tensorflow_cpu",),
        "streams that run no Python, but to read files",
    ),
    "tf.data-choose": Contestant(
        "tensorflow", ("tensorflow",), ("tensorflow_cpu",), "streams that run no Python"
    ),
    "fairseq2": Contestant("fairseq2", ("fairseq2.data.data_pipeline",), ("fairseq2n", "torch")),
    "fairseq2-native": Contestant(
        "fairseq2",
        ("fairseq2.data.data_pipeline",),
        ("fairseq2n", "torch"),
        "streams that run no Python",
    ),
    "torch": Contestant("torch", ("torch",), ("torch", "numpy"), "order depends on workers"),
    "torch-map": Contestant("torch", ("torch",), ("torch", "numpy"), "tables, not streams"),
    "spdl": Contestant("spdl", ("spdl.pipeline",), ("spdl-core", "numpy"), "in threads"),
    "spdl-process": Contestant("spdl", ("spdl.pipeline",), ("spdl-core", "numpy")),
}

# Nobody is measured without these.
ALWAYS = ("limit", "ours")


def python_of(env):
    bin = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return ENVS.joinpath(env, *bin)


def content_of(env):
    """A digest of what an environment is made from; for ours, of the sources too."""
    digest = hashlib.sha256(repr((ENV[env].requires, sys.version)).encode())
    if "." in ENV[env].requires:
        files = [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"]
        package = [path for path in (ROOT / "pescador").rglob("*.*") if path.is_file()]
        files += [path for path in package if path.suffix not in (".so", ".pyd", ".pyc")]
        for path in sorted(files):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def _stamp(env):
    return ENVS / f"{env}.json"


def is_made(env):
    try:
        return json.loads(_stamp(env).read_text())["content"] == content_of(env)
    except (OSError, ValueError, KeyError):
        return False


def make(env):
    """Make an environment; return None, or why it could not be made."""
    if is_made(env):
        return None
    ENVS.mkdir(exist_ok=True)
    folder, log = ENVS / env, ENVS / f"{env}.log"
    content = content_of(env)
    _stamp(env).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    requires = [str(ROOT) if name == "." else name for name in ENV[env].requires]
    pip = [python_of(env), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [[sys.executable, "-m", "venv", folder]]
    if "." in ENV[env].requires:
        # A build folder of its own: that of the checkout may be in use for other flags.
        pip += ["--config-settings", f"build-dir={ENVS / 'build'}"]
    steps.append([*pip, *requires])
    with log.open("w") as out:
        for step in steps:
            try:
                done = subprocess.run(
                    step, stdout=out, stderr=subprocess.STDOUT, timeout=1800, cwd=ENVS
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"could not be installed: {error}"
            if done.returncode:
                return f"could not be installed: {_last_error(log)}"
    _stamp(env).write_text(json.dumps({"content": content}))
    return None


def _last_error(log):
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no output"])[-1][:200]


def make_all(envs, say=print):
    """Make environments one after the other; return {env: why not} of those that failed."""
    failed = {}
    missing = [env for env in envs if not is_made(env)]
    for i, env in enumerate(missing, 1):
        say(f"environment {i} of {len(missing)}: {env} ({', '.join(ENV[env].requires)})")
        start = time.monotonic()
        reason = make(env)
        if reason:
            failed[env] = reason
        say(f"    {reason or 'done'} ({time.monotonic() - start:.0f} s)")
    return failed


def main(names):
    if names == ["all"]:
        names = list(ENV)
    unknown = [name for name in names if name not in ENV]
    if unknown:
        sys.exit(f"no such environment: {', '.join(unknown)}; there are {', '.join(ENV)}")
    failed = make_all(names or [name for name, env in ENV.items() if env.light])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
