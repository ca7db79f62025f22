"""The TorchServe side of an archive: one handler class, and how a request is read.

This package travels inside every archive and imports nothing of the project but `model`.
"""
