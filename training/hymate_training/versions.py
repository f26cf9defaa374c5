"""Which packages a result came about with."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where there is none, as of hymate itself in a bare clone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package."""
    return {package: installed_version(package) for package in packages}
