"""Attacks that look for prompts of real tokens with which an unlearned pipeline draws the concept again."""

from salun_core.metrics.generation.prompt_attacks.p4d import p4d
from salun_core.metrics.generation.prompt_attacks.ring_a_bell import concept_vector, ring_a_bell
from salun_core.metrics.generation.prompt_attacks.tokens import PromptAttack, PromptSpace
from salun_core.metrics.generation.prompt_attacks.unlearn_diff_atk import unlearn_diff_atk

PROMPT_ATTACKS = {"unlearn_diff_atk": "UnlearnDiffAtk", "p4d": "P4D", "ring_a_bell": "Ring-A-Bell"}
"""Attacks by their name in parameters, with that in tables."""

__all__ = [
    "PROMPT_ATTACKS",
    "PromptAttack",
    "PromptSpace",
    "concept_vector",
    "p4d",
    "ring_a_bell",
    "unlearn_diff_atk",
]
