"""What can go wrong, a class each, with the exit code that the command line gives for it."""

from __future__ import annotations


class LatencyLabError(Exception):
    """Root of every error that latency-lab raises on purpose.

    Attributes:
        exit_code: what the command line exits with when this reaches it.
    """

    exit_code: int = 2


class UsageError(LatencyLabError):
    """An argument does not fit: which one, what was expected, what was received."""


class FileFormatError(LatencyLabError):
    """A file cannot be read as what it should be; the message has the path into the document."""


class EnvironmentMismatchError(LatencyLabError):
    """A journal or profile was taken in another environment; the message names what differs."""


class MissingRuntimeError(LatencyLabError):
    """A runtime or framework is not installed; the message has the command that installs it."""


class UnsupportedOpError(LatencyLabError):
    """A runtime cannot build or run an operation; the message names the operation and the reason."""


class UnsupportedModelError(LatencyLabError):
    """A model cannot be read; the message names the layer and the way out."""


class StructureError(LatencyLabError):
    """A structure does not belong to a model; the message names what differs."""


class BudgetError(LatencyLabError):
    """A budget cannot be reached; the message has the lowest value that can."""


class OutOfBoundsError(LatencyLabError):
    """An operation lies outside of what a profile measured, and the caller asked to be told."""


class UnmeasuredError(LatencyLabError):
    """A measurement was asked of a journal that does not hold it, or every block of it failed."""


class DeviceLostError(LatencyLabError):
    """The device cannot be reached, or not any more; the command line adds the command that goes on."""

    exit_code = 3
