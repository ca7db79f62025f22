"""Archives: build a .mar from a run directory, prove that it answers, and read what is in one.

    stage ─► pack ─► self-test ─► rename into model_store/

`contents` and `golden` read an archive without torch; the rest needs the `serve` extra.
"""
