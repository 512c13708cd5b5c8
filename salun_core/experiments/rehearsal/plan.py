"""What a run needs, worked out from its parameters before anything is read: cells, memory, disk and time."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from salun_core.data.downloads import fetching
from salun_core.data.image_files import GREY
from salun_core.data.on_disk import in_memory
from salun_core.data.sources.image_folder import pictures
from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.classification.params import described
from salun_core.experiments.generation.params import GenerationParams
from salun_core.experiments.rehearsal.networks import (
    SD_UNET,
    SD_VAE,
    TEXT_WEIGHTS,
    Cost,
    classifier_cost,
    decoder_cost,
    describing,
    text_unet_cost,
    unet_cost,
)
from salun_core.experiments.rehearsal.stand_ins import SHAPES, Shape
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.machine import MANY, find_device
from salun_core.experiments.runs.params import Params
from salun_core.metrics.generation.erasure import RELEARNING_BATCH
from salun_core.models.text_to_image.pipelines import PIXELS, check_hub_name, network_config
from salun_core.paths import expanded
from salun_core.saliency import LARGE

FLOAT = 4  # bytes
GB = 1e9
ADAM, ADAFACTOR = 2 * FLOAT, 0  # bytes of state for each weight
CHECKPOINTED = (
    0.08  # of the activations, where they are computed twice: what enters each block, and one block's own
)
UNTRAINED = (
    "original",
    "given",
    "uce",
    "rece",
    "iu",
    "ssd",
)  # no optimiser, no gradients of all weights at once
HELD = {"erasediff": 2.0, "iu": 3.0, "ssd": 3.0}
"""Further gradients of all weights that a method holds, as copies of the network."""
SETS = {"ga": ("forget",), "be": ("forget",), "bs": ("forget",), "ft": ("retain",), "l1_sparse": ("retain",)}
"""The sets that methods with epochs pass over, where it is not both."""
SHIPPED = {"digits": Shape(10, 1, 8, 898, 899), "noisy_digits": Shape(10, 1, 8, 1_297, 500)}
FILES = ("imagefolder", "tiny_imagenet")  # decoded into a file where they are too large for memory
CLIP_WEIGHTS = 428_000_000  # of CLIP ViT-L/14


@dataclass(frozen=True)
class Needs:
    """What a run needs.

    Parameters
    ----------
    cells : int
        Its grid, without what widening the bounds of tuning adds.
    flops : float
        Arithmetic, forward and backward.
    device, host : float
        Bytes at most where the networks lie, and of the machine's own memory beside them.
    disk : mapping of str to float
        Bytes of results, by what they are.
    data : str
        The images that were assumed, for print.
    """

    cells: int
    flops: float
    device: float
    host: float
    disk: Mapping[str, float] = field(default_factory=dict)
    data: str = ""

    def hours(self, tflops: float) -> float:
        """At this many TFLOP/s, sustained."""
        return self.flops / tflops / 1e12 / 3600


@dataclass(frozen=True)
class Machine:
    """What a machine has: bytes of memory, of memory on the accelerator (None without one), and free on the disk."""

    host: float | None
    device: float | None
    disk: float
    folder: Path


def assumed(values: Mapping[str, Any]) -> str:
    """The data set whose shape stands for that of a folder which is not given; empty if none is needed."""
    if values.get("dataset") != "imagefolder":
        return ""
    return "imagenette" if "pipeline" in values else "cifar10"


def needs(params: Params, stand_in: str = "") -> Needs:
    """What an experiment with these parameters needs; no image and no weight is read.

    Parameters
    ----------
    params : Params
        Of the experiment.
    stand_in : str
        A data set of ``SHAPES`` whose images are as many and as large, where those of ``params`` are not there.

    Raises
    ------
    UserError
        If the shape of the images or of the pipeline cannot be known.
    """
    shape, names = shape_of(params, stand_in)
    cells = cells_of(params, names)
    kind = str(getattr(params, "kind", "classification"))
    kinds = {"classification": _classification, "diffusion": _diffusion, "text_to_image": _text_to_image}
    found = kinds[kind](params, shape, cells, find_device(params.machine.device).type == "cuda")
    like = f", as in {stand_in}: data_dir is not given" if stand_in else ""
    said = f"{shape.train:,} + {shape.test:,} images of {shape.size} pixels in {shape.classes} classes{like}"
    return replace(found, data=said)


def machine(folder: Path, device: str) -> Machine:
    """What this machine has."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    place = find_device(device)
    usage = shutil.disk_usage(there)
    # What lies there already is not written again; some file systems do not tell their size.
    free = (
        usage.free + sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        if usage.total
        else math.inf
    )
    accelerator = torch.cuda.mem_get_info(place)[1] if place.type == "cuda" else None
    return Machine(_memory_here(), accelerator, free, folder)


def check(need: Needs, have: Machine) -> None:
    """Refuse a run that cannot fit.

    Raises
    ------
    UserError
        With what is needed, what there is, and what would need less.
    """
    disk = sum(need.disk.values())
    if disk > have.disk:
        largest = max(need.disk, key=need.disk.__getitem__)
        raise UserError(
            f"the run would write about {_gb(disk)} GB into {have.folder}, which has room for {_gb(have.disk)} GB: "
            f"{LESS[largest]}, or give an out_dir on a larger disk"
        )
    if have.device is not None and need.device > have.device:
        raise UserError(
            f"the run needs about {_gb(need.device)} GB on the accelerator, which has {_gb(have.device)} GB: set a "
            f"smaller batch_size, {LIGHTER} where the experiment has them"
        )
    both = need.host + (need.device if have.device is None else 0.0)
    if have.host is not None and both > have.host:
        networks = "" if have.device is not None else f", {LIGHTER} where the experiment has them"
        raise UserError(
            f"the run needs about {_gb(both)} GB of memory, and this machine has {_gb(have.host)} GB: set a smaller "
            f"batch_size, train_images or samples{networks}, or take a larger machine"
        )


LIGHTER = "gradient_checkpointing, precision bf16, optimizer adafactor, half, a smaller sample_batch or relearn_steps 0"
"""What makes networks and their training take less memory."""


def check_run(params: Params, *, meant: bool = False, here: bool = True) -> None:
    """Refuse a run that cannot fit, if it is to be ``here``, or that has very many cells, unless that is ``meant``.

    What cannot be known before it is read is left to the run.

    Parameters
    ----------
    params : Params
        Of the experiment.
    meant : bool
        Whether very many cells are meant; ``many_cells`` of the parameters says so too.
    here : bool
        Whether this machine is to compute them.

    Raises
    ------
    UserError
        With what is needed, what there is, and what would need less.
    """
    meant = meant or params.machine.many_cells
    if meant and not here:
        return
    _check_count(cells_at_least(params), meant, "at least ")
    try:
        need = needs(params)
    except UserError:
        return
    _check_count(need.cells, meant)
    if here:
        check(need, machine(params.machine.folder, params.machine.device))


def _check_count(count: int, meant: bool, how: str = "") -> None:
    if count > MANY and not meant:
        raise UserError(
            f"this is a grid of {how}{count:,} cells, more than {MANY:,}: add --yes or set many_cells true if you mean it"
        )


def cells_at_least(params: Params) -> int:
    """Cells that a grid has at least, from the lengths of its lists: one far too large would take long to list."""
    values = params.shown()

    def count(name: str) -> int:
        return max(1, len(values.get(name, ())))

    places = ("scenario", "classes", "fractions")
    forgotten = params.models if isinstance(params, GenerationParams) else math.prod(map(count, places))
    methods = len(set(values["methods"]) - {"original", "retrain"})
    varied = methods * count("strengths") + 3 * len(values.get("densities", ()))
    replicas = values.get("noise_floor", 0) if not values.get("pretrained") else 0
    tuned = methods * count("tuning_seed") if values.get("tune") else 0
    surface = [len(values.get(f"surface_{name}", ())) for name in ("lrs", "epochs", "keeps")]
    return (
        forgotten * count("seeds") * (varied * count("unlearning_seeds") + replicas)
        + tuned
        + math.prod(surface)
    )


LESS = {
    "changed weights": "set keep_models: false where there is such, to keep none of them",
    "samples": "set keep_samples: false where there is such, or draw fewer (samples)",
    "outputs": "keep fewer of them (kept_outputs)",
    "trained models": "give fewer seeds",
    "probes": "give fewer prompts (probe_samples)",
    "decoded images": "set a smaller image_size, or take images away from the folder",
}
"""What takes less disk, by what takes most."""


def printed(need: Needs, have: Machine, *, tflops: float, downloads: Sequence[str] = ()) -> str:
    """Needs beside what there is, as lines of text; ``downloads`` are those still to be fetched."""
    parts = ", ".join(f"{_gb(size)} GB of {name}" for name, size in need.disk.items() if size)
    device = "" if have.device is None else f" (has {_gb(have.device)} GB)"
    host = "" if have.host is None else f" (has {_gb(have.host)} GB)"
    where = "accelerator" if have.device is not None else "networks"
    return "\n".join(
        (
            f"images    {need.data}",
            f"cells     {need.cells:,}",
            f"memory    {_gb(need.device)} GB for the {where}{device}, {_gb(need.host)} GB beside{host}",
            f"disk      {_gb(sum(need.disk.values()))} GB: {parts} (free: {_gb(have.disk)} GB)",
            f"time      {need.hours(tflops):,.1f} hours at {tflops:g} TFLOP/s: {need.flops / 1e15:,.1f} PFLOP",
            *(
                [f"files     {', '.join(downloads)} to be fetched first: {fetching(downloads)}"]
                if downloads
                else []
            ),
        )
    )


# --- the images and the cells -------------------------------------------------------------------------


def shape_of(params: Params, stand_in: str = "") -> tuple[Shape, tuple[str, ...]]:
    """The shape of an experiment's images, and the names of their classes as far as they are needed."""
    values = params.shown()
    own = values.get("own_images")
    if own:
        shape = replace(SHAPES["own images"], classes=len(values["class_names"]))
        shape = replace(shape, train=own * shape.classes, test=max(1, own // 4) * shape.classes)
        return shape, tuple(values["class_names"])
    if stand_in:
        shape = SHAPES[stand_in]
        names = _named(shape.classes, values.get("forget_class"))
    elif values["dataset"] == "imagefolder":
        shape, names = folder_shape(Path(values["data_dir"]))
    else:
        known = SHAPES | SHIPPED
        if values["dataset"] not in known:
            raise UserError(
                f"how many images data set {values['dataset']!r} of another package holds is only known once it is read: "
                "run it, or plan with a data set of this project that is as large"
            )
        shape = known[values["dataset"]]
        names = _named(shape.classes, values.get("forget_class"), values.get("classes"))
    if values.get("only_classes"):
        share = len(values["only_classes"]) / shape.classes
        names = tuple(values["only_classes"])
        shape = replace(
            shape, classes=len(names), train=round(shape.train * share), test=round(shape.test * share)
        )
    size = values["image_size"] or shape.size
    return replace(shape, size=size, train=min(values["train_images"] or shape.train, shape.train)), names


def folder_shape(folder: Path) -> tuple[Shape, tuple[str, ...]]:
    """That of a folder of pictures, which are counted; only the first is opened."""
    from PIL import Image

    _, train, test = pictures(folder)
    file = next(iter(train.values()))[0]
    try:
        with Image.open(file) as first:
            size, channels = min(first.size), 1 if first.mode in GREY else 3
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UserError(f"{file} cannot be read as an image: replace or remove it") from error
    counts = [sum(map(len, part.values())) for part in (train, test)]
    return Shape(len(train), channels, size, train=counts[0], test=counts[1]), tuple(train)


def _named(count: int, *given: Any) -> tuple[str, ...]:
    """Names for this many classes, among them those that parameters name."""
    wanted = []
    for value in given:
        each = value if isinstance(value, list | tuple) else [value]
        wanted += [str(one) for one in each if one is not None and not str(one).isdigit()]
    wanted = list(dict.fromkeys(wanted))
    return (*wanted, *map(str, range(len(wanted), count)))[:count]


def cells_of(params: Params, names: tuple[str, ...]) -> list[Cell]:
    """Every cell of the grid, those of the tuning included, settings still to be chosen."""
    data = SimpleNamespace(classes=names, name=params.shown()["dataset"])
    lab = SimpleNamespace(data=data, split=lambda *_: None, pipe=None)
    if getattr(params, "unlearned", ()):
        params = params.model_copy(update={"unlearned": ()})
    grid = EXPERIMENTS[params.experiment].grid(params, lab)
    cells = [cell for study in grid.studies(grid.fixed).values() for cell in study]
    if grid.tuned:
        assert grid.tuning is not None
        cells += [
            Cell(seed, scenario, variant.method, variant.mask, point, reported=False)
            for scenario, variant in grid.tuned
            for point in grid.tuning.points(variant.method)
            for seed in grid.tuning.tuning_seed
        ]
        cells += [
            Cell(seed, scenario, end, reported=False)
            for scenario in grid.scenarios
            for seed in grid.tuning.tuning_seed
            for end in ("retrain", "original")
        ]
    return cells


def _image_bytes(values: Mapping[str, Any], shape: Shape) -> tuple[float, float]:
    """Bytes of the images that are held in memory, and of those that lie in a file: see `data.on_disk`."""
    size = float((shape.train + shape.test) * shape.channels * shape.size**2)
    if values["dataset"] in FILES and size > in_memory():
        return float(in_memory()), size
    return size, 0.0


def _parts(scenario: Scenario, shape: Shape) -> dict[str, float]:
    """Images of the forget and of the retain set."""
    share = {
        "random": scenario.fraction or 0.0,
        "class": (len(scenario.numbers) or 1) / shape.classes,
        "indices": len(scenario.ids or ()) / shape.train,
    }[scenario.kind]
    return {"forget": share * shape.train, "retain": (1 - share) * shape.train}


# --- each kind of task --------------------------------------------------------------------------------


def _classification(params: Any, shape: Shape, cells: Sequence[Cell], accelerator: bool) -> Needs:
    values, training = params.shown(), params.training
    given = described(training.pretrained) if training.pretrained is not None else None
    net = classifier_cost(
        values["arch"],
        training.own_width,
        classes=shape.classes,
        channels=shape.channels,
        size=shape.size,
        brought=partial(given.build, 0) if given is not None and given.transformer is not None else None,
    )
    epochs, images = training.complete_recipe.epochs, shape.train + shape.test
    flops = 0.0
    for cell in cells:
        sets, settings = _parts(cell.scenario, shape), cell.all_settings
        passed = sum(sets[name] for name in SETS.get(cell.method, ("forget", "retain")))
        scratch = epochs if training.retrains_itself else 0
        passes = {"original": 0, "retrain": scratch}.get(cell.method, settings.get("epochs", 1))
        seen = sets["retain"] if cell.method == "retrain" else passed
        flops += net.flops * (
            3 * passes * seen + images + (3 * sets["forget"] if cell.mask.kind != "none" else 0)
        )
    seeds = {cell.seed for cell in cells}
    flops += 3 * net.flops * len(seeds) * shape.train * (epochs if given is None else 0)
    kept = values["kept_outputs"]
    row = (2 if kept else 4) * shape.classes + 17
    rows = min(images, 5 * kept) if kept else images
    half = values["precision"] in ("bf16", "auto")
    moving = net.activations * values["batch_size"] * (0.5 if half else 1.0)
    held_images, mapped = _image_bytes(values, shape)
    # Original, copy, gradient, momentum, mask.
    held = (
        net.weights * (4 * FLOAT + 1)
        + max((HELD.get(c.method, 0) for c in cells), default=0) * net.weights * FLOAT
    )
    return Needs(
        len(cells),
        flops,
        held + moving + (0.0 if mapped else held_images),
        held_images,
        {
            "outputs": float(len(cells) * rows * row),
            "trained models": float(len(seeds) * net.weights * FLOAT) if given is None else 0.0,
            "decoded images": mapped,
        },
    )


def _diffusion(params: Any, shape: Shape, cells: Sequence[Cell], accelerator: bool) -> Needs:
    values = params.shown()
    net = unet_cost(
        tuple(values["widths"]),
        values["layers"],
        tuple(values["attention"]),
        channels=shape.channels,
        size=shape.size,
    )
    training = values["steps"] * values["batch_size"]
    brought = values.get("pretrained") is not None
    gone = len(cells[0].scenario.numbers)  # the same for all cells
    samples = gone * params.sampling.samples + (shape.classes - gone) * params.sampling.others
    drawn = _passes(values) * samples * net.flops
    flops = 0.0 if brought else 3.0 * net.flops * training * len(values["seeds"])
    for cell in cells:
        work = _unlearning(cell, values)
        if cell.method == "retrain":
            work = 3.0 * training if values.get("retrained") in (None, "train") else 0.0
        flops += drawn + work * net.flops
    images = samples * shape.channels * shape.size**2
    half = values["precision"] in ("bf16", "auto")
    moving = net.activations * 2 * values["batch_size"] * (0.5 if half else 1.0)
    copies = net.weights * (3 * FLOAT + ADAM + 1)
    held_images, mapped = _image_bytes(values, shape)
    return Needs(
        len(cells),
        flops,
        copies + _further(cells) * net.weights * FLOAT + moving,
        2 * held_images + 2 * images,
        {
            "samples": float(len(cells) * images),
            "changed weights": float((len(cells) + 1) * net.weights * FLOAT),
            "decoded images": mapped,
        },
    )


def _text_to_image(params: Any, shape: Shape, cells: Sequence[Cell], accelerator: bool) -> Needs:
    values = params.shown()
    config, vae = part_config(params, "unet", "transformer"), part_config(params, "vae")
    with describing(values["pipeline"]):
        net, decoder = text_unet_cost(config), decoder_cost(vae)
        side = config["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = 3.0 * side**2
    in_styles, for_captions = params.styles_and_captions.images
    count = shape.classes * (values["samples"] * kinds_of(params) + in_styles) + for_captions
    image = _passes(values) * net.flops + decoder.flops
    flops = sum(count * image + _unlearning(cell, values) * net.flops for cell in cells)
    # Every picture goes through the autoencoder for each class that is forgotten; encoders cost about half of decoders.
    flops += len({(cell.scenario, cell.seed) for cell in cells}) * shape.train * decoder.flops / 2
    stored = 2 if values["half"] else FLOAT
    changed = [_changed(cell) * stored + 0.125 * bool(_changed(cell)) for cell in cells]
    disk = {
        "samples": (len(cells) if values["keep_samples"] else 1) * count * pixels,
        "changed weights": (sum(changed) if values["keep_models"] else max(changed)) * net.weights,
    }
    parts, clip = other_parts(values, net, decoder), clip_memory(values, net)
    device = max(training_memory(cell, values, net, accelerator=accelerator) for cell in cells)
    if not accelerator:  # where what rests meanwhile has no other place to lie
        device += parts + clip
    drawing = drawing_memory(values, net, decoder, side=side)
    host = (shape.train + shape.test + count) * pixels
    if any(cell.mask.kind in ("salient", "least_salient") for cell in cells) and net.weights >= LARGE:
        # Scores lie beside a large network; on an accelerator their sums in double precision are there at the same time.
        host += (2 if accelerator else 1) * FLOAT * net.weights
    if values.get("own_images"):
        flops += (shape.train + shape.test) * image
    if "relearn_steps" in values:  # every model is probed, for each class that it has forgotten
        probes = sum(len(cell.scenario.numbers) for cell in cells)
        prompts = values["probe_samples"] or values["prompts_rows"]
        steps = values["attack_steps"] * values["attack_batch"] + values["relearn_steps"] * 8
        steps += 2 * values["prompt_steps"] * values["prompt_batch"]
        shown = values["attack_samples"] * 7 + values["relearn_samples"] * (
            1 + values["relearn_steps"] // values["relearn_every"]
        )
        flops += probes * ((prompts + shown) * image + 3 * steps * net.flops)
        disk["probes"] = probes * values["pictures"] * pixels
        device = max(device, parts + probing_memory(values, net, clip, accelerator=accelerator))
    return Needs(len(cells), flops, max(device, drawing), host, disk)


def training_memory(cell: Cell, values: Mapping[str, Any], net: Cost, *, accelerator: bool) -> float:
    """Bytes where the networks lie while a cell unlearns.

    The original, a copy in single precision with gradients and the optimiser's state, a mask, and what a step keeps
    of a batch of each set. On an accelerator Adam's step takes as much again as the weights for a moment, when the
    activations are gone.
    """
    share = trained_share(cell)
    state = ADAFACTOR if values["optimizer"] == "adafactor" else ADAM
    each = (2 if values["half"] else FLOAT) + FLOAT + share * (FLOAT + state)
    each += (cell.mask.kind not in ("none", "lora")) + HELD.get(cell.method, 0.0) * FLOAT
    step = step_memory(values, net) if share else 0.0
    if accelerator and state:
        step = max(step, share * FLOAT * net.weights)
    return each * net.weights + step


def drawing_memory(values: Mapping[str, Any], net: Cost, decoder: Cost, *, side: int) -> float:
    """Bytes where the networks lie while images of ``side`` pixels are drawn and judged.

    The original and the unlearned network, the other parts, CLIP, and the activations of a batch with and without prompt.
    """
    stored = 2 if values["half"] else FLOAT
    batch = min(PIXELS, values["sample_batch"] * side**2) * 650 * stored
    batch += 0.1 * net.activations * values["sample_batch"]
    return net.weights * 2 * stored + other_parts(values, net, decoder) + batch + clip_memory(values, net)


def other_parts(values: Mapping[str, Any], net: Cost, decoder: Cost) -> float:
    """Bytes of the autoencoder, and of a text encoder where the pipeline is a large one."""
    return (2 if values["half"] else FLOAT) * (decoder.weights + TEXT_WEIGHTS * (net.weights >= LARGE))


def clip_memory(values: Mapping[str, Any], net: Cost) -> float:
    """Bytes of the CLIP model that images are judged with, where the pipeline is a large one."""
    return CLIP_WEIGHTS * FLOAT if values["clip"] and net.weights >= LARGE else 0.0


def probing_memory(values: Mapping[str, Any], net: Cost, clip: float, *, accelerator: bool) -> float:
    """Bytes where the networks lie while an unlearned network is attacked, and while a copy of it relearns.

    Attacks hold the original too, and relearning a copy in single precision, with gradients and Adam's state; what
    a step keeps, it keeps in single precision. On an accelerator the original and CLIP rest while it relearns.
    """
    stored = 2 if values["half"] else FLOAT
    each = net.activations * (CHECKPOINTED if values["gradient_checkpointing"] else 1.0)
    searched = max(values["attack_batch"], values["prompt_batch"])
    attacked = 2 * stored * net.weights + clip + each * searched
    if not values["relearn_steps"]:
        return attacked
    step = each * min(RELEARNING_BATCH, values["relearn_images"])
    rest = 0.0 if accelerator else stored * net.weights + clip
    step = max(step, FLOAT * net.weights) if accelerator else step
    return max(attacked, (stored + 2 * FLOAT + ADAM) * net.weights + rest + step)


def trained_share(cell: Cell) -> float:
    """Share of the weights that have gradients and a state of the optimiser."""
    if cell.method in UNTRAINED:
        return 0.0
    return 0.05 if cell.mask.kind == "lora" or cell.method == "ca" else 1.0


def step_memory(values: Mapping[str, Any], net: Cost) -> float:
    """Bytes that a step keeps of a batch of each set for its backward pass."""
    kept = net.activations * 2 * values["batch_size"]
    if values["gradient_checkpointing"]:
        return kept * CHECKPOINTED
    # Under autocast half of the activations, and a copy of the weights in half precision.
    return kept if values["precision"] == "fp32" else kept / 2 + 2 * net.weights


def kinds_of(params: Any) -> int:
    """Kinds of prompts: four for digits by their captions, else one."""
    naming = params.naming
    return 4 if params.data.dataset == "digits" and not naming.class_names and not naming.test_prompts else 1


def part_config(params: Any, *parts: str) -> dict[str, Any]:
    """The configuration of a part of a pipeline, the first that it has, from its folder or the hub's cache.

    Raises
    ------
    UserError
        If the pipeline is not here.
    """
    from huggingface_hub import try_to_load_from_cache

    from salun_core.experiments.text_to_image.params import source_of

    source = expanded(source_of(params.pipeline.pipeline))
    local = source.is_dir()
    if not local:
        check_hub_name(params.pipeline.pipeline)
    for part in parts:
        file: Any = source / part / "config.json"
        if not local:
            file = try_to_load_from_cache(params.pipeline.pipeline, f"{part}/config.json")
        if isinstance(file, str | Path) and Path(file).exists():
            return network_config(Path(file))
    if "stable-diffusion-v1" in str(source):
        return {"unet": SD_UNET, "vae": SD_VAE}[parts[0]]
    raise UserError(
        f"the size of pipeline {source} is not known: give a diffusers folder with {parts[0]}/config.json, or fetch it"
    )


def _passes(values: Mapping[str, Any]) -> float:
    """Passes through the network that one image takes."""
    return float(values["sample_steps"] * (2 if values["guidance"] else 1))


def _unlearning(cell: Cell, values: Mapping[str, Any]) -> float:
    """Passes of one image through the network, a backward pass counting as two, that unlearning takes."""
    if cell.method in UNTRAINED:
        return 0.0
    steps = cell.all_settings.get("steps") or values["forget_steps"]
    return 7.0 * steps * values["batch_size"]  # forward and backward for each set, and a target


def _further(cells: Sequence[Cell]) -> float:
    return max((HELD.get(cell.method, 0.0) for cell in cells), default=0.0)


def _changed(cell: Cell) -> float:
    """Share of the weights that differ afterwards."""
    if cell.method in ("original", "given"):
        return 0.0
    if cell.method in ("uce", "rece", "ca"):  # keys and values of cross-attention
        return 0.03
    return cell.mask.keep if cell.mask.kind not in ("none", "lora") else 1.0


def _memory_here() -> float | None:
    """Bytes of this machine's memory, or as much of it as its container may use."""
    try:
        found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return found
    return min(found, float(limit)) if limit.isdigit() else found


def _gb(size: float) -> str:
    return f"{size / GB:,.1f}" if size < 100 * GB else f"{size / GB:,.0f}"


__all__ = ["Machine", "Needs", "check", "machine", "needs", "printed"]
