"""Training: runs, checkpoints, processes, weights, flags. It knows nothing of tasks or data sources."""

VERSION = "0.17.0"  # of radio-mae, as in CHANGELOG.md and CITATION.cff; checkpoints carry it
