"""Search for training settings: `imgcls tune-training`, on Optuna.

    space.toml ─ read_space ─► Space ─ Study ─ a trial ─► train.py in a process of its own ─► history.csv ─► value
                                          └──► study.journal, trials.csv, best.json, plots

A trial is a run like any other, with its own folder. Optuna proposes and prunes; this room starts train.py, watches its
history and keeps the study on the disk, so that it goes on where it was killed.
"""
