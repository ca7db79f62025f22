"""A pytest fixture over `imgcls.archive.testing`: `pytest_plugins = ["imgcls.archive.pytest_plugin"]` brings it.

That line stands in the topmost conftest.py, or in the test file itself.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from imgcls.archive.testing import ServedArchive, load_archive


@pytest.fixture
def serve_archive() -> Iterator[Callable[..., ServedArchive]]:
    """Loads archives as `load_archive` does, `serve_archive(archive, **options)`, and closes them after the test."""
    with ExitStack() as stack:
        yield lambda archive, **options: stack.enter_context(load_archive(archive, **options))
