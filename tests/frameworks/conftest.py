"""What frameworks read when they are imported first."""

import os

# Eight devices of JAX on the CPU.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
