"""Random pipelines of the newer kinds, of the classes of diffusers and a few ten thousand weights each."""

import copy
from functools import cache
from typing import Any

from text_problems import FIVE, SEVEN, THREE, WORDS, images

from salun_core.models.diffusion.unet import quiet
from salun_core.models.text_to_image.pipelines import check_pipeline
from salun_core.models.text_to_image.tiny_pipeline import SCHEDULE, build_tokenizer
from salun_core.rng import isolated
from salun_core.tasks.text_to_image import text_to_image_task

LENGTH = 12  # tokens of a prompt
TEXTS = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "hidden_act": "gelu",
}


def tokenizer():
    return build_tokenizer(WORDS, length=LENGTH)


def clip_config(tokenizer, **more):
    from transformers import CLIPTextConfig

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return CLIPTextConfig(**TEXTS, vocab_size=len(tokenizer), **ids, **more)


def autoencoder(**more):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=8,
        **more,
    )


@cache
def sdxl(zeros: bool = True) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with isolated(0, "tiny SDXL"), quiet():
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            cross_attention_dim=32,
            norm_num_groups=8,
        )
        return check_pipeline(
            StableDiffusionXLPipeline(
                vae=autoencoder(force_upcast=True),
                text_encoder=CLIPTextModel(clip_config(tokenizer())),
                text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer(), projection_dim=24)),
                tokenizer=tokenizer(),
                tokenizer_2=tokenizer(),
                unet=unet,
                scheduler=EulerDiscreteScheduler(**SCHEDULE),
                force_zeros_for_empty_prompt=zeros,
                add_watermarker=False,
            )
        )


def t5():
    """A T5 encoder and a tokenizer of single letters for it."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((c, -2.0) for c in "▁abcdefghijklmnopqrstuvwxyz"),
    ]
    plain = Tokenizer(Unigram(pieces, unk_id=2))
    plain.pre_tokenizer = Metaspace()
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), T5TokenizerFast(tokenizer_object=plain, extra_ids=0)


@cache
def sd3(with_t5: bool = True, **schedule: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    with isolated(0, "tiny SD3"), quiet():
        transformer = SD3Transformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=4,
        )
        encoders = [
            CLIPTextModelWithProjection(clip_config(tokenizer(), projection_dim=width)) for width in (16, 24)
        ]
        third = t5() if with_t5 else (None, None)
        return check_pipeline(
            StableDiffusion3Pipeline(
                transformer=transformer,
                scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **schedule}),
                vae=autoencoder(shift_factor=0.06, scaling_factor=1.5),
                text_encoder=encoders[0],
                tokenizer=tokenizer(),
                text_encoder_2=encoders[1],
                tokenizer_2=tokenizer(),
                text_encoder_3=third[0],
                tokenizer_3=third[1],
            )
        )


BUILDERS = {"sdxl": sdxl, "sd3": sd3}


@cache
def family_task(name):
    """Forget "a photo of a seven" in favour of a three, keep threes and fives. Tests must not change it."""
    return text_to_image_task(
        copy.copy(BUILDERS[name]()),
        forget=(images(10), [SEVEN] * 10),
        retain=(images(16, 1), [THREE, FIVE] * 8),
        replacement=THREE,
        batch_size=5,
    )
