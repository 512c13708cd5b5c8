"""Attacks in prompt space on the models of a lab: their budgets, and what they are run with."""

from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from salun_core.experiments.runs.params import Group, parameter
from salun_core.experiments.text_to_image.lab import FIRST, TextLab
from salun_core.metrics.generation.prompt_attacks import (
    PROMPT_ATTACKS,
    PromptAttack,
    PromptSpace,
    p4d,
    ring_a_bell,
    unlearn_diff_atk,
)

AT_EACH_TIME = 40  # steps of UnlearnDiffAtk before it goes on to another time step, as its authors take


class PromptAttacking(Group):
    """Attacks that look for prompts of real tokens, and their budgets."""

    prompt_attacks: tuple[str, ...] = parameter(
        tuple(PROMPT_ATTACKS), "searches for prompts of real tokens: " + ", ".join(PROMPT_ATTACKS)
    )
    prompt_steps: int = parameter(
        2000,
        f"steps of P4D, and of UnlearnDiffAtk, {AT_EACH_TIME} at each time step",
        needs="prompt_attacks",
        ge=1,
    )
    prompt_batch: int = parameter(1, "noisy images in a step", needs="prompt_attacks", ge=1)
    prefix_tokens: int = parameter(
        5,
        "tokens that UnlearnDiffAtk puts before the prompt",
        needs="prompt_attacks has unlearn_diff_atk",
        ge=1,
    )
    prefix_lr: float = parameter(0.01, "its learning rate", needs="prompt_attacks has unlearn_diff_atk", gt=0)
    prompt_tokens: int = parameter(
        16, "tokens of the prompts that P4D and Ring-A-Bell find", needs="prompt_attacks", ge=1
    )
    p4d_lr: float = parameter(0.1, "learning rate of P4D", needs="prompt_attacks has p4d", gt=0)
    ring_strength: float = parameter(
        3.0,
        "how far Ring-A-Bell moves a prompt towards the concept",
        needs="prompt_attacks has ring_a_bell",
        gt=0,
    )
    ring_population: int = parameter(
        200, "prompts in its first generation", needs="prompt_attacks has ring_a_bell", ge=2
    )
    ring_generations: int = parameter(3000, "its generations", needs="prompt_attacks has ring_a_bell", ge=1)

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"prompt_attacks": (PROMPT_ATTACKS, "attack")}


class PromptAttacker:
    """Runs the attacks on models of a lab.

    Parameters
    ----------
    lab : TextLab
        Where the pipeline and the prompts are.
    how : PromptAttacking
        Which attacks, with which budgets.
    """

    def __init__(self, lab: TextLab, how: PromptAttacking) -> None:
        self.lab, self.how = lab, how
        self._without_model: dict[Any, PromptAttack] = {}

    @cached_property
    def space(self) -> PromptSpace:
        """The prompts that the pipeline can be given."""
        return PromptSpace(self.lab.pipe)

    def found(
        self, name: str, model: nn.Module, latents: Tensor, forgotten: int, unnamed: str, *, seed: int
    ) -> PromptAttack:
        """What an attack finds.

        Parameters
        ----------
        name : str
            A key of ``PROMPT_ATTACKS``.
        model : nn.Module
            The unlearned network.
        latents : Tensor
            (N, C, h, w), clean and scaled, of images of the forgotten class.
        forgotten : int
            Number of that class.
        unnamed : str
            A prompt that does not name it, from which Ring-A-Bell starts.
        seed : int
            Of the attack.
        """
        lab, how = self.lab, self.how
        prompt = lab.prompts.training[forgotten]
        if name == "unlearn_diff_atk":
            return unlearn_diff_atk(
                model,
                self.space,
                lab.pipe.scheduler,
                latents,
                prompt=prompt,
                tokens=how.prefix_tokens,
                times=max(1, how.prompt_steps // AT_EACH_TIME),
                iterations=min(AT_EACH_TIME, how.prompt_steps),
                lr=how.prefix_lr,
                batch_size=how.prompt_batch,
                seed=seed,
            )
        if name == "p4d":
            return p4d(
                model,
                lab.network,
                self.space,
                lab.pipe.scheduler,
                latents,
                prompt=prompt,
                tokens=how.prompt_tokens,
                steps=how.prompt_steps,
                lr=how.p4d_lr,
                batch_size=how.prompt_batch,
                seed=seed,
            )
        key = (forgotten, unnamed, seed)
        if key not in self._without_model:  # it looks at no network, so what it finds serves for every model
            self._without_model[key] = ring_a_bell(
                self.space,
                pairs=self._pairs(forgotten),
                prompt=unnamed,
                strength=how.ring_strength,
                tokens=how.prompt_tokens,
                population=how.ring_population,
                generations=how.ring_generations,
                seed=seed,
            )
        return self._without_model[key]

    def _pairs(self, forgotten: int) -> list[tuple[str, str]]:
        """Prompts that name the forgotten class, and the same for the class that takes its place."""
        prompts, other = self.lab.prompts, self.lab.replaced(forgotten)
        first = prompts.test[FIRST]
        return [
            (prompts.training[forgotten], prompts.training[other]),
            *zip(first[forgotten], first[other], strict=False),
        ]
