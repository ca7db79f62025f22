"""Brings a new version into service without losing a request.

    plan ─► engine ─► samples ─► analysis ─► verdict ─► engine
                 └──► view

The plan says how; the analysis says, from the answers that were sampled, whether the new version may go on. Plan,
samples, analysis and view are pure: no network, no process, no clock. No torch in this room.
"""
