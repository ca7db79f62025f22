"""Measured comparisons: each a ratio within one run, on one machine, interleaved, medians of several rounds."""
