"""Errors of the gateway.

GatewayError (a ServingError)
├── EnvoyError            Envoy is not there, refuses its configuration, ends, or does not answer
├── TableError            the table of versions cannot be read, or would route to nothing
├── NoGatewayError        no gateway runs with this state folder
├── BusyError             someone else is changing the table, or rolling
└── InFlightError         a version has requests in flight all the time

A gateway.yaml or a key file that cannot be used is a UsageError.
"""

from imgcls.errors import ServingError


class GatewayError(ServingError):
    """The gateway cannot be started, reached, changed or stopped."""


class EnvoyError(GatewayError):
    """Envoy is not there, refuses its configuration, ends, or does not answer."""


class TableError(GatewayError):
    """The table of versions cannot be read, or would route to nothing."""


class NoGatewayError(GatewayError):
    """No gateway runs with this state folder."""


class BusyError(GatewayError):
    """Someone else is changing the table, or rolling."""


class InFlightError(GatewayError):
    """A version has requests in flight all the time, so that none of its workers can be taken away."""
