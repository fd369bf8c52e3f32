"""What all tests share."""

import os
import tempfile

# As the ranks of a test's worlds have: results are compared to the bit, and tests run side by side. Set
# before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is quickest is remembered between runs of the user's; tests neither read nor leave such memories.
# Set before any process is started, so that all have it.
_CACHE = tempfile.TemporaryDirectory(prefix="paradit-test-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
