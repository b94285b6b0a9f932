"""A worker process in a contestant's environment, seen from the process that compares them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time

import contestants
from contestants import BENCH, CONTESTANTS

# What numeric libraries would otherwise do with more than one processor.
THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")

# How many seconds importing may take.
IMPORTS = 120

# How many rounds are taken even of a contestant that is slow.
LEAST_ROUNDS = 2


def command(contestant, *arguments):
    python = contestants.python_of(CONTESTANTS[contestant].env)
    return [python, BENCH / "worker.py", contestant, *map(str, arguments)]


def environment():
    """The environment variables of workers: one thread, and the same hashes in each."""
    same = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    same |= {f"{name}_NUM_THREADS": "1" for name in THREADS}
    return same | {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}


class Process:
    """One contestant at one case: its worker (see `worker.py`), and what that has answered."""

    def __init__(self, contestant, work, profile, target):
        self.contestant, self.work, self.profile = contestant, work, profile
        self.patience = work.case.patience or profile.patience
        self.versions = self.size = self.failure = None
        self.rounds, self.cpu, self.memory, self.spent = [], [], 0, 0.0
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.connection, other = multiprocessing.Pipe()
        with other:
            self.process = subprocess.Popen(
                command(contestant, work.identifier, profile.warm, target, other.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                env=environment(),
                pass_fds=[other.fileno()],
                start_new_session=True,
            )

    def ask(self, patience):
        """Return the next answer; None if there is none, and `failure` says why."""
        if self.failure:
            return None
        try:
            self.connection.send(None)
            if self.connection.poll(patience):
                answer = self.connection.recv()
            else:
                self.kill()
                answer = TimeoutError(f"took more than {patience:.0f} s")
        except (OSError, EOFError):
            self.kill()
            self.output.seek(0)
            lines = self.output.read().decode(errors="replace").strip().splitlines()
            status = f"the worker ended with status {self.process.returncode}"
            answer = RuntimeError(f"{status}: {lines[-1] if lines else 'no output'}"[:300])
        if isinstance(answer, Exception):
            self.failure = str(answer)
            return None
        return answer

    def start(self):
        """Wait until everything is imported."""
        self.versions = self.ask(IMPORTS)

    def prepare(self):
        """Have the job built, warmed up and calibrated: three steps, of which each may be slow."""
        self.size = self.ask(3 * self.patience)

    def round(self, counts=True):
        """Take a round, unless there have been enough; keep it if it counts."""
        if len(self.rounds) < LEAST_ROUNDS or self.spent < self.profile.enough:
            start = time.monotonic()
            answer = self.ask(self.patience)
            self.spent += time.monotonic() - start
            if answer and counts:
                *taken, self.memory, cpu = answer
                self.rounds.append(taken)
                self.cpu += [] if cpu is None else [cpu]

    def kill(self):
        # The whole session: a worker may have processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self):
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()
        self.output.close()
