"""What Ray and its workers read when they start."""

import os
import pathlib
import tempfile

HERE = pathlib.Path(__file__).parent

# Nothing goes into the home folder, and nothing is sent.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Ray keeps the logs of each session for ever: those of tests, of scripts that tests run and of the
# page go into a folder that is removed at exit. The names of the sockets there have to be short.
_folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
os.environ["RAY_TMPDIR"] = _folder.name

# What workers import.
paths = (HERE, HERE.parent, HERE.parent / "parity", HERE.parent / "frameworks")
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
