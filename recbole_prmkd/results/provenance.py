"""What code made a result: package versions, and the commit of a checkout."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "recbole_prmkd",
    "recbole",
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "pandas",
    "scipy",
    "ray",
)


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit that this package runs from, `-dirty` where files differ from it; None outside a checkout."""
    home = Path(__file__).resolve().parent.parent.parent
    if not (home / ".git").exists():
        return None
    command = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or one that rejects the folder's owner
        return None
