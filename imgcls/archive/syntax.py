"""Parses Python, one source at a time: builds may run in several threads of one process.

CPython before 3.11.8 keeps the parser's recursion depth for the whole interpreter, so that two threads that parse at
once may fail with a SystemError (python/cpython issue 106905).
"""

import ast
import threading

_turn = threading.Lock()


def parse_python(source: bytes | str) -> ast.Module:
    """Returns the syntax tree of a source; raises what ast.parse raises."""
    with _turn:
        return ast.parse(source)
