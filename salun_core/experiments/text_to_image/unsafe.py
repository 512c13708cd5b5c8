"""The experiment on unsafe content: a concept forgotten, and every way to bring it back (Figures 5 and 6)."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from pydantic import model_validator
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from salun_core.code_digest import code_digest
from salun_core.data.downloads import DOWNLOADS, how_to_get, refuse_missing
from salun_core.data.images import ImageData
from salun_core.data.prompts import I2P_ROWS, PromptSet, read_i2p
from salun_core.errors import UserError
from salun_core.experiments.generation.lab import result_of
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.grid import Grid
from salun_core.experiments.runs.params import Group, parameter
from salun_core.experiments.runs.store import Key, Result
from salun_core.experiments.text_to_image import class_forgetting as text_to_image
from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.experiments.text_to_image.params import TextToImageParams, refuse_long, remark_long
from salun_core.experiments.text_to_image.probes import Prober, Probing
from salun_core.experiments.text_to_image.prompt_attacks import PromptAttacking
from salun_core.metrics.generation.detection import detect, detection_counts, redacted
from salun_core.metrics.generation.erasure import neighbour_damage
from salun_core.metrics.generation.prompt_attacks import PromptSpace
from salun_core.models.text_to_image.pipelines import pipeline_identity
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.paths import project_root

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TEST_SHARE = 4  # one image for the test for each so many of forgetting


class UnsafePrompts(Group):
    """Prompts that do not name the concept, and images of it where no data set has them."""

    own_images: int = parameter(
        0, "let the original pipeline draw this many images to forget, and as many to keep", ge=0
    )
    prompts_file: Path | None = parameter(
        None, "CSV file of prompts that do not name the concept, such as I2P's"
    )
    prompts_rows: int = parameter(
        I2P_ROWS,
        "how many prompts the file must hold; 0 for any number",
        ge=0,
        needs="prompts_file",
        no_effect="a file with another number is refused",
    )
    prompts_category: str = parameter("", "only the prompts of this category", needs="prompts_file")
    prompts_guidance: bool = parameter(
        False, "draw each prompt with the guidance its file gives", needs="prompts_file"
    )

    @property
    def path(self) -> Path:
        """The file of prompts."""
        assert self.prompts_file is not None
        return self.prompts_file if self.prompts_file.is_file() else project_root() / self.prompts_file

    @property
    def downloads(self) -> tuple[str, ...]:
        """Keys of ``DOWNLOADS`` that prompts are read from."""
        return ("i2p",) if self.prompts_file is not None and self.path == DOWNLOADS["i2p"].paths[0] else ()

    def read(self) -> PromptSet | None:
        """The prompts of the file; None where there is none."""
        if self.prompts_file is None:
            return None
        path = self.path
        if self.downloads and not path.is_file():
            raise UserError(f"prompts_file {path} is missing: {how_to_get('i2p')}")
        found = read_i2p(path, rows=self.prompts_rows or None)
        found = found.about(self.prompts_category) if self.prompts_category else found
        return found if self.prompts_guidance else found.without_guidance()


class UnsafeParams(TextToImageParams):
    """Parameters of the experiment: those of text-to-image, and how models are probed."""

    experiment: ClassVar[str] = "unsafe"
    # The models are probed, so they are kept; adapters take the place of a mask, and there are none.
    fixed: ClassVar[tuple[str, ...]] = ("masks", "keep_models", "keep_samples", "lora_rank", "lora_lr")

    methods: tuple[str, ...] = parameter(
        ("original", "esd", "fmn", "uce", "ca", "salun"),
        "methods beside the original, which is always the first row",
    )
    masks: tuple[str, ...] = parameter((), "none in this experiment")
    unnamed: UnsafePrompts = UnsafePrompts()
    probing: Probing = Probing()
    attacking: PromptAttacking = PromptAttacking()

    @model_validator(mode="after")
    def _together(self) -> "UnsafeParams":
        if self.unnamed.own_images and len(self.naming.class_names) < 2:
            raise UserError("own_images needs class_names: what to forget, and what takes its place")
        for name in ("keep_models", "keep_samples"):
            if not getattr(self.sampling, name):
                raise UserError(f"unsafe probes the models it made and what they draw: leave {name} out")
        return self

    @property
    def downloads(self) -> tuple[str, ...]:
        """Those of text-to-image, and the prompts."""
        return (*super().downloads, *self.unnamed.downloads)

    def lab(self, *, data: ImageData | None = None, pipe: "StableDiffusionPipeline | None" = None) -> TextLab:
        """Load pipeline and data; with ``own_images`` the original pipeline draws what it forgets and keeps."""
        refuse_missing(self.downloads)
        prompts = self.unnamed.read()  # refused first: everything after it takes time
        naming = self.naming
        if prompts is None and (self.data.dataset != "digits" or naming.class_names or naming.test_prompts):
            raise UserError(
                f"unsafe needs prompts_file, prompts that do not name the concept, such as I2P's: {how_to_get('i2p')}"
            )
        pipe = self.load_pipe() if pipe is None else pipe
        if prompts is not None:
            remark_long(pipe, prompts.texts, f"of {prompts.name}")
        refuse_long(pipe, [naming.class_prompt.format(name) for name in naming.class_names])
        if self.attacking.prompt_attacks:
            room = PromptSpace(pipe).length - 2  # refuses a pipeline with several text encoders
            for name in ("prompt_tokens", "prefix_tokens"):
                if (asked := getattr(self.attacking, name)) > room:
                    raise UserError(
                        f"{name} is {asked}, and a prompt of this pipeline holds {room}: take fewer"
                    )
        drawing = bool(self.unnamed.own_images) and data is None
        # What is wrong with the rest is said before images are drawn, which takes hours: blank ones stand in for them.
        blank = torch.zeros(2 * len(naming.class_names), 3, 1, 1, dtype=torch.uint8)
        made = super().lab(data=self._own(blank, train=1) if drawing else data, pipe=pipe)
        if self.probing.detector == "nudenet":
            detector = Prober(made, self.probing).detector  # refused now, if the package is missing
            made.covering = lambda images: redacted(images, detect(detector, images)).images
        if drawing:
            data = self._drawn(pipe)
            made = replace(made, data=data, problem=replace(made.problem, data=data))
        return made

    def _drawn(self, pipe: "StableDiffusionPipeline") -> ImageData:
        """Images of each class drawn by the original pipeline, as the paper does for what no data set has."""
        if getattr(pipe, "safety_checker", None) is not None:
            raise UserError(
                "the safety checker would blacken the images to forget: turn it off by name (safety_checker: false)"
            )
        own, names = self.unnamed.own_images, self.naming.class_names
        each = own + max(1, own // TEST_SHARE)
        texts = [self.naming.class_prompt.format(name) for name in names]
        how: dict[str, Any] = {
            "guidance": self.sampling.guidance,
            "steps": self.sampling.sample_steps,
            "eta": self.sampling.eta,
            "sampler": self.sampling.sampler,
        }
        what = {"texts": texts, "each": each, **how, "pipeline": pipeline_identity(pipe)}
        key = Key("images", what | {"bf16": self.pipeline.half}, code_digest(sample_prompts.__module__))
        store = self.machine.store()
        found = store.get(key)
        if found is None:
            batch = self.sampling.sample_batch
            with store.pieces(key, batch=batch) as pieces:
                images = sample_prompts(
                    pipe,
                    [text for text in texts for _ in range(each)],
                    batch_size=batch,
                    bf16=self.pipeline.half,
                    progress=True,
                    kept=pieces.images("own"),
                    **how,
                )
                files = {".images.safetensors": save({"images": images})}
                found = store.put(key, {"n": len(images)}, {}, files)
        images = load(store.path(key, ".images.safetensors").read_bytes())["images"]
        return self._own(images, train=own)

    def _own(self, images: Tensor, *, train: int) -> ImageData:
        """Images in the order of their classes as data: the first ``train`` of each for training, the rest for the test."""
        names = self.naming.class_names
        each = len(images) // len(names)
        places = torch.arange(len(images)) % each
        order = torch.cat([(places < train).nonzero(), (places >= train).nonzero()]).view(-1)
        return ImageData(
            "own images",
            images[order],
            (torch.arange(len(images)) // each)[order],
            train * len(names),
            names,
            note=f"drawn by {self.pipeline.pipeline}",
        )


@dataclass(frozen=True)
class UnsafeResults:
    """Results of the experiment.

    Parameters
    ----------
    cells : DataFrame
        As in the text-to-image experiment, the original first.
    probes : DataFrame
        One row for each model and probe: ``shown``, the share of ``n`` images that show the concept, and
        ``utility``, the share of other classes drawn as asked for.
    curves : DataFrame
        Relearning, a row for each model and point.
    counts : DataFrame
        Detections for prompts without the concept's name, by category and threshold.
    damage : DataFrame
        The other classes of each model, the neighbours of the forgotten one first.
    attacks : DataFrame
        A row for each model and attack in prompt space: the prompt found, the share of ``n`` images that show
        the concept ``before`` (its own prompt) and ``after``, the attack's loss before and after, and its cost.
    prober : Prober
        For a closer look.
    params : UnsafeParams
        The parameters, complete.
    """

    cells: pd.DataFrame
    probes: pd.DataFrame
    curves: pd.DataFrame
    counts: pd.DataFrame
    damage: pd.DataFrame
    attacks: pd.DataFrame
    prober: Prober
    params: UnsafeParams

    @property
    def lab(self) -> TextLab:
        """Where the models are."""
        return self.prober.lab


def grid(params: UnsafeParams, lab: TextLab) -> Grid:
    """The cells of the experiment; every model that was unlearned is probed."""

    @cache
    def prober() -> Prober:
        return Prober(lab, params.probing, params.unnamed.read(), params.attacking)

    def probe(cell: Cell, result: Result) -> None:
        for forgotten in cell.scenario.numbers:
            prober().run(_probed(cell.seed, cell.scenario), result, forgotten)

    return replace(text_to_image.grid(params, lab), further=probe)


def _probed(seed: int, scenario: Scenario) -> Cell:
    """Probes look at the seed and at what is forgotten, and take the model from its result."""
    return Cell(seed, scenario, "original")


def run(params: UnsafeParams, *, lab: TextLab | None = None) -> UnsafeResults:
    """Run or resume the experiment: unlearn as in text-to-image, then probe every model.

    Raises
    ------
    UserError
        For anything the user can put right, before anything is computed.
    """
    lab = lab or params.lab()
    found = text_to_image.run(params, lab=lab)
    prober = Prober(lab, params.probing, params.unnamed.read(), params.attacking)
    done = found.cells[found.cells["status"] == "done"]
    probes, curves, counts, damage, attacks = [], [], [], [], []
    tried = []
    for _, row in done.iterrows():
        result = result_of(lab, row)
        scenario = Scenario.from_what(result.key.what["scenario"])
        tried += [(row, result, scenario, number) for number in scenario.numbers]
    with tqdm(total=len(tried), desc="probes", unit="model", dynamic_ncols=True) as progress:
        for row, result, scenario, forgotten in tried:
            progress.set_postfix_str(f"{row['scenario']}, seed {row['seed']}, {row['method']}")
            probed = prober.run(_probed(int(row["seed"]), scenario), result, forgotten)
            progress.update()
            name: dict[str, Any] = {k: row[k] for k in ("method", "mask", "seed")}
            name |= {"forgotten": lab.data.classes[forgotten], "probe_cell": probed.key.name}
            utility = float(row[[f"OA {kind}" for kind in lab.kinds]].astype(float).mean())
            values = probed.content
            probes += [
                name | {"probe": probe, "shown": share, "n": n, "utility": utility}
                for probe, share, n in values["shown"]
            ]
            attacks += [name | attack for attack in values["prompt_attacks"]]
            curves += [
                name
                | {"step": step, "shown": share, "n": params.probing.relearn_samples}
                | {"images": values["relearn_images"]}
                for step, share in values["curve"]
            ]
            table = detection_counts(prober.detections(probed), categories=prober.categories)
            fixed = detection_counts(
                prober.detections(probed), thresholds=[params.probing.threshold], categories=prober.categories
            )
            concept = detection_counts(
                prober.detections(probed), categories={"concept": prober.concept(forgotten)}
            )
            counts += [
                part.assign(**name, use=use)
                for part, use in (
                    (table, "range"),
                    (fixed, "bars"),
                    (concept[concept["category"] == "concept"], "concept"),
                )
            ]
            same = done[
                (done["method"] == "original")
                & (done["seed"] == row["seed"])
                & (done["scenario"] == row["scenario"])
            ]
            before = lab.recognition(result_of(lab, same.iloc[0]))
            damage.append(
                neighbour_damage(
                    before, lab.recognition(result), prober.neighbours(forgotten), lab.data.classes
                ).assign(**name)
            )
    return UnsafeResults(
        found.cells,
        pd.DataFrame(probes),
        pd.DataFrame(curves),
        pd.concat(counts, ignore_index=True),
        pd.concat(damage, ignore_index=True),
        pd.DataFrame(attacks),
        prober,
        params,
    )
