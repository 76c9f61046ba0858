"""What holds for every test: one thread, no deadline for a property (a busy machine is not a bug), the same examples always.

One thread, set before torch is loaded and handed down to every process that a test starts: the models are tiny, two threads
would wait for each other, and figures would depend on the machine.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("inward", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("inward")
