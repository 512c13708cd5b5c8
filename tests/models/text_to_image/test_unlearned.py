import copy
import json
import os

import pytest
import torch
from pipeline_families import BUILDERS, family_task, sd3, sdxl
from problems import same
from safetensors.torch import save_file
from text_problems import pipeline, text_task

from salun_core.errors import UserError
from salun_core.methods import METHODS
from salun_core.models.text_to_image.deltas import save_delta
from salun_core.models.text_to_image.families import network_of
from salun_core.models.text_to_image.pipelines import load_pipeline, save_pipeline
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.models.text_to_image.unlearned import compvis_name, load_unlearned

pytestmark = pytest.mark.long

PIPES = {"sd": pipeline, **BUILDERS}
ALL = pytest.mark.parametrize("name", PIPES)


def unlearned(name="sd", **more):
    task = text_task() if name == "sd" else family_task(name)
    return METHODS["rl"](task, steps=2, lr=1e-2, order="joint", **more).model


def state(model, prefix=""):
    return {prefix + name: value.contiguous() for name, value in model.state_dict().items()}


def in_compvis(model, prefix=""):
    return {prefix + compvis_name(name, model): value for name, value in model.state_dict().items()}


def checkpoint(model):
    """A whole checkpoint as CompVis' code writes it, with parts beside the network."""
    others = {
        "betas": torch.rand(10),
        "first_stage_model.encoder.conv_in.weight": torch.rand(2, 2),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.rand(3),
        "model_ema.decay": torch.tensor(0.9),
    }
    return {"state_dict": {**others, **in_compvis(model, "model.diffusion_model.")}, "global_step": 7}


@ALL
def test_a_folder_of_diffusers_gives_the_network_back(name, tmp_path):
    pipe, model = PIPES[name](), unlearned(name)
    before = copy.deepcopy(network_of(pipe))
    whole = save_pipeline(pipe, model, tmp_path / "whole")
    part = next(whole.glob("unet")) if name != "sd3" else whole / "transformer"
    for place in (whole, part):
        found = load_unlearned(place, pipe)
        assert same(found, model) and not found.training
    assert same(network_of(pipe), before)
    drawn = sample_prompts(pipe, ["a photo of a seven"], unet=load_unlearned(whole, pipe), steps=2)
    assert torch.equal(drawn, sample_prompts(load_pipeline(whole), ["a photo of a seven"], steps=2))


@ALL
@pytest.mark.parametrize("prefix", ["", "unet.", "module.", "transformer."])
def test_state_dicts_in_safetensors_and_pickles(name, prefix, tmp_path):
    model = unlearned(name)
    save_file(state(model, prefix), tmp_path / "a.safetensors")
    torch.save(state(model, prefix), tmp_path / "b.pt")
    torch.save({"state_dict": state(model, prefix), "epoch": 3}, tmp_path / "c.ckpt")
    torch.save({"unet": state(model, prefix)}, tmp_path / "d.bin")
    torch.save(state(model, prefix), tmp_path / "e.pth", _use_new_zipfile_serialization=False)
    for file in sorted(tmp_path.iterdir()):
        assert same(load_unlearned(file, PIPES[name]()), model), file.name


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_names_of_compvis(name, tmp_path):
    model = unlearned(name)
    torch.save(checkpoint(model), tmp_path / "whole.ckpt")
    torch.save(in_compvis(model), tmp_path / "network.pt")
    save_file(checkpoint(model)["state_dict"], tmp_path / "whole.safetensors")
    for file in sorted(tmp_path.iterdir()):
        assert same(load_unlearned(file, PIPES[name]()), model), file.name


def real(kind):
    """Networks as released, of which nothing but names and shapes is made."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        if kind == "sd":
            return UNet2DConditionModel(cross_attention_dim=768)
        return UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            cross_attention_dim=2048,
        )


@pytest.mark.parametrize("network", ["tiny sd", "tiny sdxl", "sd", "sdxl"])
def test_names_are_those_that_diffusers_converts_from(network):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model = {"tiny sd": lambda: pipeline().unet, "tiny sdxl": lambda: sdxl().unet}.get(
        network, lambda: real(network)
    )()
    given = in_compvis(model, "model.diffusion_model.")
    assert len(given) == len(model.state_dict())
    back = convert_ldm_unet_checkpoint(given, dict(model.config))
    assert back.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert back[name].shape == value.shape, name
        assert value.is_meta or torch.equal(back[name], value), name


@pytest.mark.parametrize("compvis", [False, True])
def test_a_file_with_some_weights_changes_these_alone(compvis, tmp_path):
    model = unlearned()
    named = {name: value for name, value in model.state_dict().items() if name.endswith("attn2.to_k.weight")}
    part = {
        ("model.diffusion_model." + compvis_name(name, model) if compvis else name): value
        for name, value in named.items()
    }
    torch.save({"state_dict": part}, tmp_path / "delta.bin")
    found = load_unlearned(tmp_path / "delta.bin", pipeline()).state_dict()
    for name, before in pipeline().unet.state_dict().items():
        assert torch.equal(found[name], named.get(name, before)), name
    assert named


def test_our_own_files_of_changes(tmp_path):
    model = unlearned()
    file = save_delta(model, pipeline().unet, tmp_path / "delta.safetensors")
    assert same(load_unlearned(file, pipeline()), model)
    other = METHODS["ft"](text_task(), steps=1, lr=1e-3).model
    wrong = save_delta(model, other, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match="another network"):
        load_unlearned(wrong, pipeline())


def test_the_precision_is_that_of_the_pipeline(tmp_path):
    model = unlearned()
    save_file({k: v.half() for k, v in state(model).items()}, tmp_path / "half.safetensors")
    found = load_unlearned(tmp_path / "half.safetensors", pipeline())
    assert {w.dtype for w in found.parameters()} == {torch.float32}
    assert same(found, copy.deepcopy(model).half().float())


def test_weights_in_pieces_and_in_two_precisions(tmp_path):
    model = unlearned()
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    items = list(state(model).items())
    save_file(dict(items[:40]), tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors")
    save_file(dict(items[40:]), tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors")
    assert same(load_unlearned(tmp_path, pipeline()), model)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    save_file(state(model), tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({k: v * 0 for k, v in items}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    torch.save({k: v * 0 for k, v in items}, tmp_path / "diffusion_pytorch_model.bin")
    assert same(load_unlearned(tmp_path, pipeline()), model)


class Trap:
    def __reduce__(self):
        return (print, ("code of a pickle ran",))


class Command:
    def __reduce__(self):
        return (os.system, ("echo code of a pickle ran",))


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("a.pt", {"weight": Trap()}, "holds more than tensors"),
        ("a.pt", {"weight": Command()}, "holds more than tensors"),  # torch words this one otherwise
        ("a.pt", [1, 2], "holds a list"),
        ("a.pt", {"some.other.weight": torch.ones(1)}, r"holds no weight .* \(but some.other.weight\)"),
        ("a.pt", {}, "holds no weight"),
        ("a.pt", {"down.lora_A.weight": torch.ones(1)}, "holds adapters"),
        ("a.pt", {"conv_in.bias": torch.ones(9)}, r"shape \(9,\) for conv_in.bias, .* \(8,\)"),
        ("a.pt", {"conv_in.bias": torch.full((8,), torch.nan)}, "not finite"),
        ("a.pt", {"conv_in.bias": torch.ones(8), "conv_in.scale": torch.ones(1)}, "conv_in.scale, which"),
        ("a.onnx", {}, "unknown file type"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(name, held, message, tmp_path, capfd):
    torch.save(held, tmp_path / name)
    with pytest.raises(UserError, match=message) as found:
        load_unlearned(tmp_path / name, pipeline())
    assert "\n" not in str(found.value)
    assert "ran" not in capfd.readouterr().out


def test_damaged_files_and_missing_ones_are_named(tmp_path):
    model = unlearned()
    torch.save(state(model), tmp_path / "a.pt")
    save_file(state(model), tmp_path / "b.safetensors")
    for file in sorted(tmp_path.iterdir()):
        file.write_bytes(file.read_bytes()[:-2000])
        with pytest.raises(UserError, match="truncated or damaged"):
            load_unlearned(file, pipeline())
    torch.save(
        state(model), tmp_path / "newer.pt", pickle_protocol=4
    )  # torch warns of it, and cannot read it
    with pytest.raises(UserError, match="save it again with torch.save, without pickle_protocol"):
        load_unlearned(tmp_path / "newer.pt", pipeline())
    (tmp_path / "newer.pt").unlink()
    (tmp_path / "c.pt").write_bytes(b"no pickle at all")
    with pytest.raises(UserError, match="truncated or damaged"):
        load_unlearned(tmp_path / "c.pt", pipeline())
    with pytest.raises(UserError, match="there is no file or folder"):
        load_unlearned(tmp_path / "none", pipeline())
    with pytest.raises(UserError, match=r"holds a.pt and c.pt"):
        load_unlearned_without(tmp_path, "b.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        load_unlearned(tmp_path / "empty", pipeline())


def load_unlearned_without(folder, name):
    (folder / name).unlink()
    return load_unlearned(folder, pipeline())


def test_another_kind_of_network_is_refused(tmp_path):
    folder = save_pipeline(sd3(), sd3().transformer, tmp_path / "sd3")
    with pytest.raises(UserError, match="holds a SD3Transformer2DModel"):
        load_unlearned(folder / "transformer", pipeline())
    with pytest.raises(UserError, match="holds a CLIPTextModelWithProjection"):
        load_unlearned(folder / "text_encoder", pipeline())
    wider = save_pipeline(sdxl(), sdxl().unet, tmp_path / "sdxl")
    with pytest.raises(UserError, match="lacks"):
        load_unlearned(wider, pipeline())
    (folder / "transformer/config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        load_unlearned(folder, sd3())
