"""Errors that maquette raises. Each message says what was given, what is valid and what to do next."""

from __future__ import annotations


class MaquetteError(Exception):
    """Base class of every error that maquette raises on purpose."""


class InvalidInputError(MaquetteError, ValueError):
    """A value or tensor given by the caller is not valid."""


class FileFormatError(MaquetteError, ValueError):
    """A file is truncated, malformed, too large or not of the expected format."""


class UnsupportedError(MaquetteError):
    """The request is well formed, but this machine or this build cannot do it."""


class MissingDependencyError(MaquetteError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class WeightsError(MaquetteError):
    """Weights are missing, do not fit the network or fail their checksum."""


class DownloadError(MaquetteError):
    """A download that the user asked for could not be completed."""
