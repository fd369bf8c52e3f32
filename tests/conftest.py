"""Settings of the environment that all tests share."""

import os
import tempfile

# One thread, like the ranks of a test's worlds, because results are compared bit for bit and tests run side
# by side. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A cache of their own: tests neither read nor change the choices that the user's runs remember. Set before
# any process is started, so that all processes have it.
_CACHE = tempfile.TemporaryDirectory(prefix="paradit-test-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
