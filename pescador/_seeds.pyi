from collections.abc import Sequence

import numpy as np

def state_of(sequence: np.random.SeedSequence, key: Sequence[int]) -> tuple[int, int]: ...
def integers_of(
    sequence: np.random.SeedSequence, key: Sequence[int], bounds: Sequence[int]
) -> list[int]: ...
