from typing import Any

import numpy.typing as npt

def copy_slices(
    to: npt.NDArray[Any], chunk: npt.NDArray[Any], begins: npt.NDArray[Any], axis: int
) -> None: ...
