"""The MNI152 2009a template that the nilearn package carries, found without importing nilearn."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from configs.errors import InputError


def template_path(kind: Literal["t1", "gm", "wm"] = "t1") -> Path:
    """Return the path of the 1 mm MNI152 2009a T1 template, or of its grey or white matter map.

    Raises:
        InputError: The nilearn package, or the file inside it, is not there.
    """
    found = find_spec("nilearn")
    name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    path = Path(found.origin).parent / "datasets" / "data" / name if found and found.origin else Path(name)
    if not path.is_file():
        raise InputError(f"Cannot find the template {name} of the nilearn package.", "Run `make setup` again.")
    return path
