"""How much tests try that could go on for ever; more of it in ``make test-long``."""

import os

from hypothesis import HealthCheck, Phase, settings

#: How many times the examples and rounds of ``make test``.
TIMES = int(os.environ.get("TEST_TIMES", "1"))


def examples(n):
    """Have hypothesis try n examples."""
    return settings(max_examples=n * TIMES)


def explore(n):
    """Have hypothesis try n random trees: in ``make test`` the same each time."""
    return settings(
        max_examples=n * TIMES,
        phases=set(Phase) - {Phase.explain},
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )
