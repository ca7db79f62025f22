"""Chooses an archive's engine, workers, threads and batches by measurement, on the machine that shall serve it.

    run ─► candidates ─► trial (repack ─► server ─► k6 ─► search) ─► halving ─► verdict ─► report, plot, settings

Called by `imgcls tune`. Each candidate is the archive itself with another model-config.yaml, served by a TorchServe of
its own. No torch in this process.
"""
