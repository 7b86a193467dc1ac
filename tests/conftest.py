"""Settings of all tests."""

import os

# The models here are so small that threads would cost more than they bring, above all where the cores are shared.
os.environ["OMP_NUM_THREADS"] = "1"
