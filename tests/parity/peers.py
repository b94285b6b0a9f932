"""The reference releases of pescador, loaded under other names beside ours."""

import collections.abc
import functools
import importlib
import pathlib
import sys
import types

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / ".peers"


@functools.cache
def load(version):
    """Return a release as a module, or skip the test where it was not fetched."""
    package = FOLDER / version / "pescador"
    if not package.exists():
        pytest.skip(
            f"pescador {version} is not here; `make test` fetches it", allow_module_level=True
        )
    if str(FOLDER / "lib") not in sys.path:
        sys.path.append(str(FOLDER / "lib"))
    name = "pescador_" + version.replace(".", "_")
    # Not by its __init__: that of 2.0.0 imports a name of joblib that is long gone.
    module = types.ModuleType(name)
    module.__path__ = [str(package)]
    sys.modules[name] = module
    for part in ("exceptions", "core", "maps", "mux") + (("zmq_stream",) if version >= "3" else ()):
        submodule = importlib.import_module(f"{name}.{part}")
        for key, value in vars(submodule).items():
            if getattr(value, "__module__", None) == submodule.__name__:
                setattr(module, key, value)
    if version < "3":
        # Python 3.10 moved this.
        module.core.collections = types.SimpleNamespace(Iterable=collections.abc.Iterable)
    return module
