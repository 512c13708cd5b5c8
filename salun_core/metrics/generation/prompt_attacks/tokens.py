"""Prompts as tokens: which there are, where an attack puts its own, and what the text encoder makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.metrics.generation.erasure import noised
from salun_core.models.diffusion.unet import predict_noise
from salun_core.rng import generator


@dataclass(frozen=True)
class PromptAttack:
    """A prompt that an attack found.

    Parameters
    ----------
    ids : Tensor
        int64 (L,): the whole prompt as tokens, with those of start and end.
    text : str
        The same, decoded.
    typed : bool
        Whether a pipeline that is given the text sees these tokens; where not, the text is only a description.
    curve : list of (int, float)
        Steps done, and the attack's loss each time, lower being better for the attacker. The first entry is
        the loss of the prompt as it was before the attack.
    passes : int
        Images that went through a denoising network.
    encoded : int
        Prompts that went through the text encoder.
    """

    ids: Tensor = field(repr=False)
    text: str
    typed: bool
    curve: list[tuple[int, float]]
    passes: int
    encoded: int

    @property
    def before(self) -> float:
        """Loss of the prompt as it was."""
        return self.curve[0][1]

    @property
    def after(self) -> float:
        """Loss of the prompt that was found; the prompt as it was does not count."""
        return min((loss for _, loss in self.curve[1:]), default=self.before)


class PromptSpace:
    """The prompts that a pipeline can be given.

    Parameters
    ----------
    pipe : pipeline of diffusers
        With one text encoder.

    Raises
    ------
    UserError
        If it has several.
    """

    def __init__(self, pipe: Any) -> None:
        if getattr(pipe, "text_encoder_2", None) is not None:
            raise UserError(
                f"attacks in prompt space need a pipeline with one text encoder, and a {type(pipe).__name__} has "
                "several: leave prompt_attacks empty"
            )
        self.tokenizer, self.encoder = pipe.tokenizer, pipe.text_encoder
        self.length: int = pipe.tokenizer.model_max_length
        special = torch.tensor(pipe.tokenizer.all_special_ids)
        every = torch.arange(self.encoder.get_input_embeddings().num_embeddings)
        self.allowed = every[~torch.isin(every, special)]
        """Tokens that an attack may use: all but those of start, end and padding, (V,)."""

    @property
    def table(self) -> Tensor:
        """Vectors of all tokens, in the order of their numbers."""
        return self.encoder.get_input_embeddings().weight.detach()

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt, without start and end, cut off where the encoder takes no more."""
        return self.tokenizer(text, truncation=True, max_length=self.length).input_ids[1:-1]

    def padded(self, inside: Sequence[int]) -> Tensor:
        """A whole prompt, int64 (L,)."""
        ids = [self.tokenizer.bos_token_id, *inside, self.tokenizer.eos_token_id]
        return torch.tensor(ids + [self.tokenizer.pad_token_id] * (self.length - len(ids)))

    def with_places(self, text: str, count: int, *, every: int = 0) -> tuple[Tensor, Tensor]:
        """A prompt with room for tokens of an attack.

        Parameters
        ----------
        text : str
            The prompt; its end is cut off if it would not fit.
        count : int
            Tokens of the attack, put before the prompt.
        every : int
            If positive: one token after every ``every`` tokens of the prompt instead, at most ``count`` in all.

        Returns
        -------
        ids, places
            int64 (L,), with any tokens at the places, and the places, int64 (count,).
        """
        room = self.length - 2
        if not 1 <= count <= room:
            raise UserError(f"the attack may use 1 to {room} tokens, got {count}")
        own = self.ids(text)
        if every:
            count = min(count, -(-len(own) // every))
        own = own[: room - count]
        filler = int(self.allowed[0])
        inside: list[int] = [] if every else [filler] * count
        places = list(range(count)) if not every else []
        for i, token in enumerate(own, start=1):
            inside.append(token)
            if every and (i % every == 0 or i == len(own)) and len(places) < count:
                places.append(len(inside))
                inside.append(filler)
        if not places:
            raise UserError(f"the prompt {text!r} has no tokens to put others between: give one, or every 0")
        return self.padded(inside), torch.tensor(places) + 1  # behind the start

    def decoded(self, ids: Tensor) -> tuple[str, bool]:
        """The text of a whole prompt, and whether the tokenizer makes the same tokens of it."""
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
        return text, self.padded(self.ids(text)).tolist() == ids.tolist()

    @torch.no_grad()
    def embedded(self, ids: Tensor) -> Tensor:
        """What the denoising network is given for whole prompts (N, L): (N, L, D)."""
        return self.encoder(ids.to(self.encoder.device))[0]

    def embedded_with(self, ids: Tensor, places: Tensor, chosen: Tensor) -> Tensor:
        """The same for one prompt (L,) whose tokens at ``places`` have the vectors ``chosen`` (k, D): (L, D).

        Gradients flow into ``chosen``.
        """

        def replaced(layer: nn.Module, given: Any, vectors: Tensor) -> Tensor:
            return vectors.index_copy(1, places.to(vectors.device), chosen[None].to(vectors))

        hook = self.encoder.get_input_embeddings().register_forward_hook(replaced)
        try:
            return self.encoder(ids[None].to(self.encoder.device))[0][0]
        finally:
            hook.remove()


class Target:
    """Noisy images of the concept, and what the attacked network should predict for them.

    Parameters
    ----------
    edited : nn.Module
        The network under attack.
    schedule : scheduler of diffusers
        Its own.
    latents : Tensor
        (N, C, h, w), clean and scaled, of images that show the concept.
    batch_size : int
        Noisy images in a step.
    seed : int
        Of the noise.
    original : nn.Module, optional
        Network whose prediction is aimed at; by default the aim is what the images themselves say, as in
        training.
    concept : Tensor, optional
        (L, D), the embedded prompt that ``original`` is given.
    """

    def __init__(
        self,
        edited: nn.Module,
        schedule: Any,
        latents: Tensor,
        *,
        batch_size: int,
        seed: int,
        original: nn.Module | None = None,
        concept: Tensor | None = None,
    ) -> None:
        if not len(latents):
            raise UserError("the attack needs at least one image that shows the concept")
        if batch_size < 1:
            raise UserError(f"the attack needs at least one noisy image in a step, got {batch_size}")
        self.edited, self.schedule, self.original, self.concept = edited, schedule, original, concept
        self.latents, self.size = latents.float(), batch_size
        self.rng = generator(seed, "prompt attack")
        self.fixed = noised(schedule, self.latents, generator(seed, "prompt attack", "fixed"), spread=True)
        self.passes = 0

    def loss(self, embedding: Tensor, noisy: Tensor, times: Tensor, aim: Tensor) -> Tensor:
        """Mean squared distance between the prediction for an embedded prompt (L, D) and the aim."""
        if self.original is not None and self.concept is not None:
            with torch.no_grad():
                aim = self._predicted(self.original, noisy, times, self.concept)
        return F.mse_loss(self._predicted(self.edited, noisy, times, embedding), aim)

    def drawn(self, times: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of images with new noise, at times drawn as in training or given (one for all)."""
        rows = torch.randint(0, len(self.latents), (self.size,), generator=self.rng).to(self.latents.device)
        return noised(self.schedule, self.latents[rows], self.rng, times=times)

    @torch.no_grad()
    def score(self, embedding: Tensor) -> float:
        """The loss of an embedded prompt on fixed noise, with time steps spread over the diffusion."""
        parts = zip(*(part.split(self.size) for part in self.fixed), strict=True)
        total = sum(float(self.loss(embedding, *part)) * len(part[0]) for part in parts)
        return total / len(self.latents)

    def _predicted(self, model: nn.Module, noisy: Tensor, times: Tensor, embedding: Tensor) -> Tensor:
        self.passes += len(noisy)
        own = next(model.parameters())
        given = embedding.to(own).expand(len(noisy), -1, -1)
        return predict_noise(model, noisy.to(own), times, given).float()
