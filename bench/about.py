"""What is said of a run besides its figures: the machine, the commit, how to run it again."""

import contextlib
import datetime
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys

from contestants import ROOT


def machine():
    cpu, memory = platform.processor() or platform.machine(), None
    with contextlib.suppress(OSError, TypeError):
        cpu = re.search("model name\\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    with contextlib.suppress(ValueError, OSError):
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    return {
        "cpu": cpu,
        "processors": os.cpu_count(),
        "memory_gb": memory,
        "system": platform.system(),
    }


def commit():
    """The commit that is measured, marked if there are changes; None outside of git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+changes"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(git, capture_output=True, check=True, text=True).stdout.strip()
    return None


def run():
    """What tells one run from another."""
    arguments = shlex.join(sys.argv[1:])
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "make": f'make bench BENCH="{arguments}"' if arguments else "make bench",
        "commit": commit(),
        "machine": machine(),
    }
