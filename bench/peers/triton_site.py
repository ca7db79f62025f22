"""For the interpreter inside Triton's Python backend; bench.environments puts this into its environment.

That interpreter is older than the standard library that it finds (3.11.7 here): multiprocessing asks a lock for
`_recursion_count`, which the interpreter's own lock does not have. The library's lock in Python does.
"""

import _thread
import threading

if not hasattr(_thread.RLock, "_recursion_count"):
    threading._CRLock = None  # type: ignore[attr-defined]
