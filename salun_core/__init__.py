"""Machine unlearning by gradient-based weight saliency: the library behind the companion book.

The names listed in ``__all__`` are imported when they are first used, so that ``import salun_core`` costs nothing.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salun_core.methods import METHODS as METHODS
    from salun_core.metrics.classification.report import evaluate as evaluate
    from salun_core.saliency import load_mask as load_mask
    from salun_core.saliency import restore_unmarked_ as restore_unmarked_
    from salun_core.saliency import saliency_mask as saliency_mask
    from salun_core.saliency import save_mask as save_mask
    from salun_core.tasks.classification import classification_task as classification_task
    from salun_core.tasks.diffusion import diffusion_task as diffusion_task
    from salun_core.tasks.text_to_image import text_to_image_task as text_to_image_task

__version__ = "0.2.0"

_HOMES = {
    "METHODS": "salun_core.methods",
    "classification_task": "salun_core.tasks.classification",
    "diffusion_task": "salun_core.tasks.diffusion",
    "evaluate": "salun_core.metrics.classification.report",
    "load_mask": "salun_core.saliency",
    "restore_unmarked_": "salun_core.saliency",
    "saliency_mask": "salun_core.saliency",
    "save_mask": "salun_core.saliency",
    "text_to_image_task": "salun_core.tasks.text_to_image",
}
__all__ = [*_HOMES]

# Progress is shown as text, which also suits a log; tqdm need not warn that widgets are missing.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
