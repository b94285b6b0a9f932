"""What frameworks read when they are imported first."""

import os
import tempfile

# Eight devices of JAX on the CPU.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

# Nothing is left behind of what Hugging Face caches, and nothing is looked for on the network.
_folder = tempfile.TemporaryDirectory(prefix="pescador-")
os.environ.update(HF_HOME=_folder.name, HF_HUB_OFFLINE="1")
