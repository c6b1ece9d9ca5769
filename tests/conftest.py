"""One thread per test process, since threads of several processes would wait for each other; and a cache of their own."""

import atexit
import os
import shutil
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
# A resumed or demo run must not find what another test, or the user, unpacked.
os.environ.pop("RANK", None)
os.environ.pop("WORLD_SIZE", None)
os.environ["DIPTYCH_CACHE"] = tempfile.mkdtemp(prefix="diptych-tests-")
atexit.register(shutil.rmtree, os.environ["DIPTYCH_CACHE"], ignore_errors=True)
