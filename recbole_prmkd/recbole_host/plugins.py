"""KD methods of other packages, found by the entry points that these packages declare.

    [project.entry-points."recbole_prmkd.kd_methods"]
    my_method = "my_package.my_module:METHOD"

Once the package is installed, `--kd=my_method` works as ours do. A template is in docs/tutorials/kd_method/.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from recbole_prmkd.errors import UserError

GROUP = "recbole_prmkd.kd_methods"


@cache
def found() -> dict[str, EntryPoint]:
    """Name of each method -> where it is; nothing of it is imported.

    Raises:
        UserError: two packages have a method of the same name.
    """
    methods: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = methods.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise UserError(
                f"Two packages have a KD method {entry.name} ({package(other)}, {package(entry)}): uninstall one, or "
                "rename its method."
            )
    return methods


@cache
def load(name: str) -> Any:
    """The object that the entry point names.

    Raises:
        UserError: its module cannot be imported or has no such object.
    """
    entry = found()[name]
    try:
        return entry.load()
    except Exception as error:  # whatever a foreign module raises on import
        raise UserError(
            f"The KD method {name} of the package {package(entry)} cannot be loaded ({type(error).__name__}: {error}): "
            "repair that package or leave the method out."
        ) from error


def package(entry: EntryPoint) -> str:
    """The name of the package that declares the entry point."""
    return entry.dist.name if entry.dist is not None else entry.module
