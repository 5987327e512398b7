"""Compile models offline: prune, distil, quantize, export, measure, publish. The server imports nothing of it."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# A training thread that waits for the other must sleep, not spin: on a busy machine spinning multiplies the CPU time.
# The OpenMP runtime reads this once, when torch is imported, which may be long before there is work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
