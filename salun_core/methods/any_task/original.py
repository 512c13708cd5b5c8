"""Original: the trained model as it is, the row that shows what there is to forget."""

from salun_core.methods.engine import Method, Unlearned
from salun_core.networks import copied
from salun_core.saliency import Mask
from salun_core.tasks.base import Task


def original(task: Task, *, mask: Mask | None = None, seed: int = 0) -> Unlearned:
    """Change nothing."""
    return Unlearned(copied(task.model).eval(), [], samples=0)


METHOD = Method(original, "Original", source="no unlearning")
