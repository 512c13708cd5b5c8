"""tiny-sd: a Stable Diffusion pipeline small enough to train on a laptop, of the same classes as the large ones."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from salun_core.errors import UserError
from salun_core.models.diffusion.unet import quiet
from salun_core.rng import isolated

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"

# The noise schedule of Stable Diffusion.
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def build_tiny_sd(
    words: Iterable[str],
    *,
    size: int = 16,
    widths: Sequence[int] = (32, 48),
    latent: int = 4,
    autoencoder: Sequence[int] = (16, 32),
    text_width: int = 64,
    text_layers: int = 2,
    text_length: int = 24,
    seed: int,
) -> "StableDiffusionPipeline":
    """Build a freshly initialised pipeline.

    Parameters
    ----------
    words : iterable of str
        What the tokenizer has whole; other words are cut into letters.
    size : int
        Height (= width) of the images, in pixels.
    widths : sequence of int
        Channels of the denoising network at each resolution; attention to the text at all but the first.
    latent : int
        Channels of the latent images.
    autoencoder : sequence of int
        Channels of the autoencoder; latents are 2 to the number of its halvings smaller than images.
    text_width, text_layers, text_length : int
        Width and layers of the text encoder, and the tokens of a prompt at most.
    seed : int
        Of the initialisation. The global random state is left as it was.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    halvings = len(autoencoder) - 1
    if size % 2 ** (halvings + len(widths) - 1):
        raise UserError(f"images of {size} pixels cannot be halved that many times: choose another size")
    tokenizer = build_tokenizer(words, length=text_length)
    attends = [level > 0 for level in range(len(widths))]
    with isolated(seed, "initial weights"), quiet():
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            block_out_channels=tuple(autoencoder),
            down_block_types=("DownEncoderBlock2D",) * len(autoencoder),
            up_block_types=("UpDecoderBlock2D",) * len(autoencoder),
            layers_per_block=1,
            latent_channels=latent,
            norm_num_groups=8,
            sample_size=size,
        )
        unet = UNet2DConditionModel(
            sample_size=size // 2**halvings,
            in_channels=latent,
            out_channels=latent,
            layers_per_block=1,
            block_out_channels=tuple(widths),
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            cross_attention_dim=text_width,
            attention_head_dim=4,  # which diffusers takes for the number of heads
            norm_num_groups=8,
        )
        text = CLIPTextModel(_clip_config(tokenizer, size, text_width, text_layers).text_config)
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def build_clip(
    tokenizer: "CLIPTokenizer", *, size: int = 16, width: int = 64, layers: int = 2, seed: int
) -> "CLIPModel":
    """A freshly initialised CLIP model whose text encoder is that of tiny-sd."""
    from transformers import CLIPModel

    with isolated(seed, "initial weights of CLIP"):
        return CLIPModel(_clip_config(tokenizer, size, width, layers))


def build_tokenizer(words: Iterable[str], *, length: int = 24) -> "CLIPTokenizer":
    """A byte-pair tokenizer of CLIP's kind that keeps ``words`` whole and cuts all others into pieces.

    Parameters
    ----------
    words : iterable of str
        Lower-case words.
    length : int
        Tokens of a prompt at most, with start and end.
    """
    from transformers import CLIPTokenizer

    merges: Any = joins(words)
    pieces = [*LETTERS, *(letter + WORD_END for letter in LETTERS), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(pieces), START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=length
    )


def joins(words: Iterable[str]) -> list[tuple[str, str]]:
    """The byte-pair merges that make each word one token: the most frequent pair first, ties by alphabet."""
    cut = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words))]
    found = []
    while counts := Counter(pair for pieces in cut for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        found.append(best)
        for pieces in cut:
            for i in range(len(pieces) - 2, -1, -1):
                if tuple(pieces[i : i + 2]) == best:
                    pieces[i : i + 2] = ["".join(best)]
    return found


def _clip_config(tokenizer: "CLIPTokenizer", size: int, width: int, layers: int) -> Any:
    from transformers import CLIPConfig

    shared = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 16),
        "projection_dim": width,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": size, "patch_size": max(1, size // 4)}
    return CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=width)
