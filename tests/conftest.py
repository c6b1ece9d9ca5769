"""One thread per test process: the models are tiny, and threads of several processes would wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
# A resumed or demo run must not find what another test, or the user, unpacked.
os.environ.pop("RANK", None)
os.environ.pop("WORLD_SIZE", None)
