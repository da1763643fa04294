"""Versions of installed packages."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of the packages that are installed, by name; the others are left out.

    >>> list(installed_versions("numpy", "no-such-package"))
    ['numpy']
    """
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
