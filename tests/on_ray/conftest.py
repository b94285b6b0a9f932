"""A folder for clusters of Ray on this machine, and what their workers import."""

import os
import pathlib
import shutil
import tempfile

import pytest

HERE = pathlib.Path(__file__).parent

# Read when Ray starts: nothing goes into the home folder, and nothing is sent.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parent / "parity")))


@pytest.fixture(scope="module")
def ray_folder():
    # The names of its sockets have to be short.
    folder = tempfile.mkdtemp(prefix="ray")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
