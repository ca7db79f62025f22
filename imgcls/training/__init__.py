"""What train.py calls: configuration, spec, batches, augmentation, schedule, filter, checkpoints, run directory.

The loop itself is in train.py, so that one file read top to bottom shows how a network is trained.
"""
