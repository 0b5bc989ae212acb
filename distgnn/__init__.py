"""distgnn: distributed training of graph recommenders.

The public names and the sampler are loaded when first used, so that `import distgnn` stays quick.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distgnn.commands import Trainer
    from distgnn.partition.prepare import load_dataset
    from distgnn.recommender import Recommender

__version__ = "0.1.0"

__all__ = ["Recommender", "Trainer", "__version__", "distill", "evaluate", "load_dataset"]

_EXPORTS = {
    "Recommender": ("distgnn.recommender", "Recommender"),
    "Trainer": ("distgnn.commands", "Trainer"),
    "distill": ("distgnn.commands", "distill"),
    "evaluate": ("distgnn.commands", "evaluate"),
    "load_dataset": ("distgnn.partition.prepare", "load_dataset"),
}
_SUBMODULES = ("sampler",)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        module, attribute = _EXPORTS[name]
        return getattr(importlib.import_module(module), attribute)
    if name in _SUBMODULES:
        return importlib.import_module(f"distgnn.{name}")
    raise AttributeError(f"module 'distgnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_SUBMODULES])


def _kernel_cache() -> Path:
    """Folder of Numba's compiled kernels: one a machine, so that every worker and every job finds the same code.

    Numba checks only a function's own file for changes, not those of the kernels inlined into it, and not whether its
    bounds were checked when it was compiled: so the name of the folder holds a hash of all kernels' sources, and
    bounds-checked code has a folder of its own.
    """
    digest = hashlib.sha256()
    for source in sorted((Path(__file__).parent / "kernels").glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    checked = "-boundscheck" if os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0") else ""
    name = f"numba-{digest.hexdigest()[:16]}{checked}"
    root = Path(os.environ.get("DISTGNN_CACHE") or Path.home() / ".cache" / "distgnn")
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
        if os.access(root / name, os.W_OK):
            return root / name
    except OSError:
        pass  # a read-only home: compile into the temporary folder instead
    return Path(tempfile.gettempdir()) / f"distgnn-{os.getuid()}" / name


if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = str(_kernel_cache())
    if "numba" in sys.modules:  # it has read its environment already
        sys.modules["numba"].config.reload_config()
