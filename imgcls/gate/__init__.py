"""Whether a run may go out: a policy of floors and allowed drops, judged on what `imgcls evaluate` has stored.

    gate.toml ─ read_policy ─► Policy ─┐
    RUN, BASELINE: evaluation/*.npz ───┴─ judge_run ─► GateReport ─► exit status, table, the archive's gate.json

Needs neither torch nor the images. Called by `imgcls gate` and by `imgcls archive build --gate`.
"""
