"""One thread to a process: tests run side by side, and threads that share a core spin while they wait."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
