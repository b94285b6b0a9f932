"""Run the suite on each Python from 3.11 on that this machine has, with its newest NumPy.

The oldest NumPy that we support is tried on the oldest Python, for which it has wheels. Warnings of
the C compiler are errors on each.
"""

import glob
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
OLDEST = (3, 11)
SUITE = ["tests", "--ignore=tests/test_packaging.py", "-p", "no:cacheprovider"]


def interpreters():
    """Return {(major, minor): path} of the Pythons on PATH and under pyenv."""
    candidates = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], 30)]
    candidates += glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python3"))
    found = {}
    for path in [sys.executable, *filter(None, candidates)]:
        asked = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
        if asked.returncode == 0:
            major, minor = asked.stdout.split()
            found.setdefault((int(major), int(minor)), path)
    return {version: found[version] for version in sorted(found) if version >= OLDEST}


def run(python, name, *packages):
    venv = ROOT / "build" / "venvs" / name
    if not venv.exists():
        subprocess.run([python, "-m", "venv", venv], check=True)
    inside = venv / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run(
        [*pip, "--group", "build", "--group", "test", "pyzmq", *packages], check=True, cwd=ROOT
    )
    subprocess.run(
        [
            *pip,
            "--no-build-isolation",
            "--no-deps",
            "--force-reinstall",
            "--editable",
            ".",
            "--config-settings",
            f"build-dir=build/{name}",
            "--config-settings",
            "cmake.define.PESCADOR_WERROR=ON",
        ],
        check=True,
        cwd=ROOT,
    )
    subprocess.run(
        [
            inside,
            "-c",
            "import sys, numpy; print('Python', sys.version.split()[0], 'NumPy',"
            " numpy.__version__, flush=True)",
        ],
        check=True,
    )
    return subprocess.run([inside, "-m", "pytest", "-q", *SUITE], cwd=ROOT).returncode


def main():
    failed = []
    pythons = interpreters()
    runs = [(python, "{}.{}".format(*version), "numpy") for version, python in pythons.items()]
    if OLDEST in pythons:
        runs.append((pythons[OLDEST], "oldest-numpy", "numpy==2.0.*"))
    for python, name, numpy in runs:
        if run(python, name, numpy):
            failed.append(name)
    print(
        "failed on: " + ", ".join(failed)
        if failed
        else f"passed on {len(runs)}: " + ", ".join(name for _, name, _ in runs)
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
