"""A random text-to-image pipeline of 40,000 weights and a task on it."""

import copy
import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from salun_core.models.text_to_image.pipelines import check_pipeline
from salun_core.models.text_to_image.tiny_pipeline import build_tiny_sd
from salun_core.tasks.text_to_image import text_to_image_task

WORDS = ("a", "photo", "picture", "of", "seven", "three", "five", "big", "old")
SEVEN, THREE, FIVE = (f"a photo of a {name}" for name in ("seven", "three", "five"))


@cache
def pipeline():
    """Tests must not change it."""
    pipe = build_tiny_sd(
        WORDS,
        size=8,
        widths=(8, 16),
        autoencoder=(8, 16),
        text_width=16,
        text_layers=1,
        text_length=12,
        seed=0,
    )
    return check_pipeline(pipe)


def images(n, seed=0):
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()


@cache
def text_task():
    """Forget "a photo of a seven" in favour of a three, keep threes and fives. Tests must not change it."""
    retained = [THREE, FIVE] * 8
    return text_to_image_task(
        copy.copy(pipeline()),
        forget=(images(10), [SEVEN] * 10),
        retain=(images(16, 1), retained),
        replacement=THREE,
        batch_size=5,
    )


@cache
def clip_tokenizer():
    """CLIP's own: 49,408 tokens, prompts of 77 at most."""
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPTokenizer

    file = Path(find_spec("open_clip").origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(file.read_bytes()).decode("utf8").split("\n")
    letters = list(bytes_to_unicode().values())
    words = 49_408 - 2 * len(letters) - 2
    merges = [tuple(line.split()) for line in lines[1 : words + 1]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77
    )


@cache
def pipeline_with_clip_tokenizer():
    """The random pipeline with CLIP's vocabulary in front of its text encoder. Tests must not change it."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer, small = clip_tokenizer(), pipeline()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    parts = {**small.components, "tokenizer": tokenizer, "text_encoder": CLIPTextModel(config)}
    return check_pipeline(StableDiffusionPipeline(**parts, requires_safety_checker=False))
