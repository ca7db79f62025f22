"""Errors of the imgcls package.

    ImgclsError
    ├── UsageError        the command line or a configuration asks for something that cannot be   exit 2
    ├── DataError         images or labels cannot be used                                         exit 1
    ├── RunError          a run directory cannot be written, read or resumed                      exit 1
    ├── ArchiveError      a .mar cannot be built, read or trusted                                 exit 1
    │   └── NotVerifiedError   it was read, and is not what was packed or not signed as demanded  exit 1
    ├── ServingError      TorchServe cannot be started, reached, scaled or stopped                exit 1
    └── ClientError       a prediction was not answered; subclasses in imgcls.client.errors       exit 1

Libraries raise these (and model.errors.ModelError); only `imgcls.cli.main` and train.py's `main` print them as
`error: …` and exit. A message says what, got, wanted and the next step, on one line.
"""


class ImgclsError(Exception):
    """Anything that imgcls refuses; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(ImgclsError):
    """The command line or a configuration asks for something that cannot be."""

    exit_code = 2


class DataError(ImgclsError):
    """Images or labels cannot be used."""


class RunError(ImgclsError):
    """A run directory cannot be written, read or resumed."""


class ArchiveError(ImgclsError):
    """A .mar cannot be built, read or trusted."""


class ServingError(ImgclsError):
    """TorchServe cannot be started, reached, scaled or stopped."""


class ClientError(ImgclsError):
    """A prediction was not answered."""


def describe_missing(error: ModuleNotFoundError) -> str:
    """Returns one line for a package that is not installed: which, and what installs it."""
    fix = "make setup, or pip install '.[train,serve]'"
    return f"the Python module {error.name!r} is not installed; install what is missing: {fix}"
