"""Trained models with what they should forget and keep, and their losses."""

from salun_core.tasks.classification_training import Recipe

FROM_SCRATCH = ("classification", "diffusion")
"""Kinds of task whose networks can be trained from scratch; that of text-to-image was trained by others."""

RECIPES: dict[str, Recipe] = {
    # The paper's appendix as its users quote it: 182 epochs, 0.1, cosine.
    "paper": Recipe(epochs=182, lr=0.1),
    # The released code: the same with two steps, at epochs 91 and 136 of 182.
    "released": Recipe(epochs=182, lr=0.1, schedule="steps", milestones=(91 / 182, 136 / 182)),
    # For a GPU in minutes: CIFAR-10 with ResNet-18.
    "fast": Recipe(epochs=30, lr=0.2, schedule="one_cycle", nesterov=True),
    # For a processor: a narrow network, few epochs, more steps an epoch.
    "cpu": Recipe(epochs=10, lr=0.1, schedule="one_cycle", nesterov=True, batch_size=128),
    # The same for longer: a narrow network then knows its training images by heart.
    "cpu_long": Recipe(epochs=22, lr=0.1, schedule="one_cycle", nesterov=True, batch_size=64),
    # Handwritten digits in seconds; noisy ones are known by heart after half of it.
    "digits": Recipe(epochs=20, lr=0.1, schedule="one_cycle", nesterov=True, batch_size=64),
    "digits_short": Recipe(epochs=10, lr=0.1, schedule="one_cycle", nesterov=True, batch_size=64),
}
"""Training classifiers from scratch, by name."""
