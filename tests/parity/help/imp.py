"""As much of the module that Python 3.12 dropped as the setup.py of pescador 2.0.0 uses."""

import importlib.util


def load_source(name, path):
    """Load a module from a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
