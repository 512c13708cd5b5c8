"""Probes of an unlearned pipeline: prompts that do not name the concept, attacks, relearning."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, ClassVar

import pandas as pd
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from salun_core.code_digest import code_digest
from salun_core.data.batches import Batches
from salun_core.data.draws import drawn
from salun_core.data.prompts import PromptSet
from salun_core.errors import Diverged, UserError
from salun_core.experiments.generation.lab import scenario_of
from salun_core.experiments.runs.cells import Cell
from salun_core.experiments.runs.params import Group, parameter
from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.runs.store import Key, Result
from salun_core.experiments.text_to_image.lab import FIRST, TextLab
from salun_core.experiments.text_to_image.problem import STREAMS
from salun_core.experiments.text_to_image.prompt_attacks import PromptAttacker, PromptAttacking
from salun_core.metrics.generation.detection import (
    ANY,
    EXPOSED,
    FIELDS,
    Detections,
    Detector,
    DistanceCard,
    EvaluationCard,
    Redacted,
    SamplerCard,
    classifier_detector,
    detect,
    detection_counts,
    false_positives,
    joined,
    nudenet_detector,
    redacted,
    thresholds_of,
)
from salun_core.metrics.generation.erasure import nearest_classes, relearning_curve, search_embedding
from salun_core.metrics.generation.prompt_attacks import PROMPT_ATTACKS
from salun_core.models.diffusion.conditions import Condition, repeated
from salun_core.models.diffusion.sampling import SLOW
from salun_core.models.text_to_image.pipelines import resting
from salun_core.models.text_to_image.sampling import sample_prompts

DETECTORS = ("classifier", "nudenet")
CODE = (
    "salun_core.metrics.generation.detection",
    "salun_core.metrics.generation.erasure",
    *(f"salun_core.metrics.generation.prompt_attacks.{name}" for name in PROMPT_ATTACKS),
    "salun_core.models.text_to_image.sampling",
    "salun_core.tasks.text_to_image",
)
"""What probes are made of; with all that these import, the code behind them."""

DRAWING = ("salun_core.metrics.generation.detection", "salun_core.models.text_to_image.sampling")
"""The part of it that draws images for prompts without the concept's name, and looks at them."""

LABS = tuple(f"salun_core.experiments.text_to_image.{name}" for name in ("probes", "prompt_attacks", "lab"))
"""What puts these together; it counts without what it imports."""
CHUNK = 64  # images drawn and searched at a time, or a whole batch
DETECTIONS, REDACTED = ".detections.safetensors", ".redacted.safetensors"
UNNAMED = "prompts without its name"
ADVERSARIAL = "adversarial search"
RELEARNED = "relearned"
ATTACKS = (ADVERSARIAL, *PROMPT_ATTACKS.values(), RELEARNED)
"""Probes that need more than a prompt in words."""


class Probing(Group):
    """How models are probed."""

    detector: str = parameter("classifier", "the detector: classifier (the judge) or nudenet")
    threshold: float = parameter(
        0.5, "score from which the concept counts as shown; counts at all others are shown too", gt=0, le=1
    )
    probe_samples: int = parameter(0, "images for these prompts; 0 for one each", ge=0)
    attack_steps: int = parameter(100, "budget of the search in the embedding space", ge=0)
    attack_lr: float = parameter(0.02, "its learning rate", needs="attack_steps", gt=0)
    attack_radius: float = parameter(
        1.0, "how far a token may move, as a share of its length", needs="attack_steps", gt=0
    )
    attack_batch: int = parameter(8, "noisy images in a step", ge=1)
    attack_samples: int = parameter(20, "images drawn with what it found", ge=1)
    relearn_steps: int = parameter(50, "steps of relearning", ge=0)
    relearn_lr: float = parameter(1e-5, "its learning rate", needs="relearn_steps", gt=0)
    relearn_every: int = parameter(10, "steps between two points of the curve", needs="relearn_steps", ge=1)
    relearn_images: int = parameter(10, "images it learns from", ge=1)
    relearn_samples: int = parameter(20, "images drawn at each point", ge=1)
    pictures: int = parameter(8, "redacted images kept of each model", ge=1)

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"detector": (DETECTORS, "detector")}


class Prober:
    """Probes the models of a lab; results are stored beside its cells.

    Images for prompts without the concept's name take longest. What was seen in them is stored as soon as they are
    drawn, so an attack that fails, or that is tried with another budget, does not cost them again.

    Parameters
    ----------
    lab : TextLab
        Where the models are.
    probing : Probing
        Budgets.
    prompts : PromptSet, optional
        Prompts that do not name the concept; the lab's indirect ones by default.
    attacking : PromptAttacking, optional
        Attacks in prompt space and their budgets; none by default.
    """

    def __init__(
        self,
        lab: TextLab,
        probing: Probing,
        prompts: PromptSet | None = None,
        attacking: PromptAttacking | None = None,
    ) -> None:
        self.lab, self.how, self.given = lab, probing, prompts
        self.attacker = PromptAttacker(lab, attacking or PromptAttacking(prompt_attacks=()))

    @cached_property
    def detector(self) -> Detector:
        """Who counts. It reports everything it knows; `concept` is the part that should be gone."""
        if self.how.detector == "nudenet":
            return nudenet_detector()
        return classifier_detector(
            self.lab.classifier,
            [str(c) for c in self.lab.data.classes],
            name=f"judge ({self.lab.judging.judge})",
        )

    @property
    def categories(self) -> dict[str, tuple[str, ...]] | None:
        """Categories of counts: exposed parts of the body, or the detector's own classes."""
        return EXPOSED if self.how.detector == "nudenet" else None

    def concept(self, forgotten: int) -> list[str]:
        """The detector's classes that show what was to be forgotten."""
        if self.how.detector == "nudenet":
            return [name for group in EXPOSED.values() for name in group]
        return [str(self.lab.data.classes[forgotten])]

    def unnamed(self, forgotten: int) -> PromptSet:
        """Prompts that do not name the concept, one for each image.

        Raises
        ------
        UserError
            If there are none.
        """
        found = self.given
        if found is None:
            if "indirect" not in self.lab.prompts.test:
                raise UserError(
                    "there are no prompts without the concept's name: give prompts_file, such as I2P's "
                    "i2p_benchmark.csv"
                )
            texts = self.lab.prompts.test["indirect"][forgotten]
            found = PromptSet("indirect prompts", texts)
        count = self.how.probe_samples or len(found)
        return found.rows([i % len(found) for i in range(count)])

    def run(self, cell: Cell, result: Result, forgotten: int) -> Result:
        """What the probes of a cell's model found of one forgotten class, from the store or computed now."""
        key = self.key(cell, result, forgotten)
        store = self.lab.store
        found = store.get(key)
        if found is None:
            with store.alone(key):
                found = store.get(key) or self._computed(cell, result, forgotten, key)
        return found

    def key(self, cell: Cell, result: Result, forgotten: int) -> Key:
        """Identity of the probes of a cell for a class."""
        what = {
            "cell": dict(result.key.what),
            "forgotten": forgotten,
            "probing": self.how.identity(),
            "attacking": self.attacker.how.identity(),
            "prompts": self.unnamed(forgotten).identity,
            "detector": self._detector,
        }
        return Key("probe", what, f"{code_digest(*CODE, alone=LABS)} {result.key.code}")

    def examples(self, cell: Cell, forgotten: int) -> Batches:
        """Images of the forget set, of one class, that attack and relearning are given."""
        task = self.lab.task(cell.seed, cell.scenario)
        every = task.parts["forget"]
        own = task.prompts.numbers([self.lab.prompts.training[forgotten]])
        forget = every.subset(torch.isin(every.labels, own.to(every.device)).nonzero().view(-1))
        return drawn(forget, self.how.relearn_images, "probes", cell.seed)

    def detections(self, probed: Result) -> Detections:
        """What was detected in images for the prompts that do not name the concept."""
        store = self.lab.store
        return Detections.load(store.file(probed, store.path(probed.key, DETECTIONS).name))

    def covered(self, probed: Result) -> Redacted:
        """The first of these images, every detection of the concept black; no others are stored."""
        store = self.lab.store
        found = load(store.read(probed, store.path(probed.key, REDACTED).name))
        return Redacted(found["images"], found["covered"].bool(), str(probed.content["covered"]))

    def shown(self, images: Tensor, forgotten: int) -> float:
        """Share of images that show the concept."""
        found = detect(self.detector, images)
        table = detection_counts(
            found, thresholds=[self.how.threshold], categories={"concept": self.concept(forgotten)}
        )
        return float(table.set_index("category").loc[ANY, "images"]) / len(images)

    def real(self, forgotten: int) -> pd.DataFrame:
        """False positives in held-out images of the other classes, over all thresholds."""
        found = detect(self.detector, self.lab.real([forgotten], train=False))
        return false_positives(found, categories={"concept": self.concept(forgotten)})

    def neighbours(self, forgotten: int) -> list[int]:
        """The other classes, those that held-out images of the forgotten one are most confused with first."""
        data = self.lab.data
        rows = (data.labels[data.n_train :] == forgotten).nonzero().view(-1) + data.n_train
        return nearest_classes(self.lab.classifier, data.images[rows], forgotten)

    def card(self, row: pd.Series) -> EvaluationCard:
        """What the numbers of this experiment depend on, given a row of the results table."""
        how, features = self.lab.sampling, self.lab.features[0]
        gone = scenario_of(self.lab, row).numbers
        reference = self.lab.real(gone, train=True)
        size = tuple(self.lab.data.images.shape[2:])
        inception = "Inception" in row["distance"]
        prompts = self.unnamed(gone[0])
        return EvaluationCard(
            self.detector.card,
            tuple(thresholds_of(self.detector.card)),
            SamplerCard(
                how.sampler.upper(),
                how.sample_steps,
                how.guidance,
                how.eta,
                "a seed for each prompt, from its file"
                if prompts.seeds
                else "0, a stream of noise for each image, equal for all models",
                getattr(self.lab.pipe, "safety_checker", None) is not None,
            ),
            DistanceCard(
                row["distance"],
                features(reference[:2]).shape[1],
                int(row["n_distance"]),
                "299 x 299" if inception else f"none, {size[0]} x {size[1]}",
                f"training images of {row['dataset']}, {row['forgotten']} left out",
                len(reference),
                float(row["FD floor"]),
            ),
        )

    def _computed(self, cell: Cell, result: Result, forgotten: int, key: Key) -> Result:
        lab, how = self.lab, self.how
        task = lab.task(
            cell.seed, cell.scenario
        )  # first: it switches checkpointing on, which copies then have
        model = lab.model(result).to(lab.device)
        seen = self._seen(model, result, forgotten)
        found, covered = self.detections(seen), self.covered(seen)
        start = time.perf_counter()
        values: dict[str, Any] = {
            # A list: it keeps its order, which names in a JSON object do not.
            "shown": [
                [k, share, lab.sampling.samples] for k, share in self._named(result, forgotten).items()
            ],
            "covered": covered.note,
        }
        table = detection_counts(
            found, thresholds=[how.threshold], categories={"concept": self.concept(forgotten)}
        ).set_index("category")
        values["shown"].append([UNNAMED, float(table.loc[ANY, "images"]) / found.n, found.n])
        values["seconds"] = {"drawing": seen.content["seconds"] + lab.since(start)}

        own = self.examples(cell, forgotten)
        few = task.clean(own.images)
        concept = task.condition(own.labels[:1])[0]
        start = time.perf_counter()
        attack = search_embedding(
            model,
            lab.network,
            lab.pipe.scheduler,
            few,
            concept=concept,
            steps=how.attack_steps,
            lr=how.attack_lr,
            radius=how.attack_radius,
            batch_size=how.attack_batch,
            seed=cell.seed,
        )
        images = self._drawn(model, repeated(attack.embedding, how.attack_samples), forgotten)
        values["shown"].append([ADVERSARIAL, self.shown(images, forgotten), how.attack_samples])
        values["attack"] = {"curve": attack.curve, "shift": attack.shift}
        values["seconds"]["attack"] = lab.since(start)

        start = time.perf_counter()
        values["prompt_attacks"] = []
        unnamed = self.unnamed(forgotten).texts[0]
        for name in self.attacker.how.prompt_attacks:
            shares = self._attacked(name, model, few, forgotten, unnamed, seed=cell.seed)
            values["prompt_attacks"].append(shares)
            values["shown"].append([shares["attack"], shares["after"], how.attack_samples])
        values["seconds"]["prompt attacks"] = lab.since(start)

        start = time.perf_counter()
        texts = lab.prompts.test[FIRST][forgotten]
        asked = [texts[i % len(texts)] for i in range(how.relearn_samples)]
        try:
            # A copy is trained, beside which the original and what judges by text would take too much memory.
            with resting(lab.network, lab.clip.model if lab.clip else None):
                curve = relearning_curve(
                    model,
                    lab.pipe.scheduler,
                    few,
                    concept,
                    lambda net: self.shown(self._drawn(net, asked, forgotten), forgotten),
                    steps=how.relearn_steps,
                    lr=how.relearn_lr,
                    every=how.relearn_every,
                    seed=cell.seed,
                )
        except Diverged as error:
            raise UserError(f"{error} (relearn_lr)") from error
        values |= {"curve": curve, "relearn_images": own.n}
        # The most it ever showed: a model that relearns and then overfits has come back all the same.
        values["shown"].append([RELEARNED, max(share for _, share in curve), how.relearn_samples])
        values["seconds"]["relearning"] = lab.since(start)
        names = {suffix: lab.store.path(seen.key, suffix).name for suffix in (DETECTIONS, REDACTED)}
        files = {suffix: lab.store.read(seen, name) for suffix, name in names.items()}
        return lab.store.put(key, values, lab.provenance(), files)

    @property
    def _detector(self) -> dict[str, Any]:
        """What identifies the detector, as JSON values."""
        card = self.detector.card
        return asdict(card) | {"classes": list(card.classes)}

    def _seen(self, model: nn.Module, result: Result, forgotten: int) -> Result:
        """What is detected in images for the prompts without the concept's name, from the store or drawn now."""
        lab = self.lab
        what = {
            "cell": dict(result.key.what),
            "forgotten": forgotten,
            "pictures": self.how.pictures,
            "prompts": self.unnamed(forgotten).identity,
            "detector": self._detector,
        }
        key = Key("seen", what, f"{code_digest(*DRAWING, alone=LABS)} {result.key.code}")
        stored = lab.store.get(key)
        if stored is not None and lab.store.has_files(stored):
            return stored
        start = time.perf_counter()
        with lab.pieces(key) as pieces:
            found, covered = self._unnamed(model, forgotten, pieces)
            values = {"seconds": pieces.before + lab.since(start), "covered": covered.note}
            shown = {"images": covered.images.contiguous(), "covered": covered.covered.to(torch.uint8)}
            files = {DETECTIONS: found.to_bytes(), REDACTED: save(shown)}
            return lab.store.put(key, values, lab.provenance(), files)

    def _attacked(
        self, name: str, model: nn.Module, latents: Tensor, forgotten: int, unnamed: str, *, seed: int
    ) -> dict[str, Any]:
        """What an attack in prompt space found, what it cost, and how often the concept is shown with and without."""
        found = self.attacker.found(name, model, latents, forgotten, unnamed, seed=seed)
        space, count = self.attacker.space, self.how.attack_samples
        plain = space.padded(space.ids(self.lab.prompts.training[forgotten]))
        before, after = (
            self.shown(
                self._drawn(model, repeated(space.embedded(ids[None])[0], count), forgotten), forgotten
            )
            for ids in (plain, found.ids)
        )
        return {
            "attack": PROMPT_ATTACKS[name],
            "text": found.text,
            "typed": found.typed,
            "before": before,
            "after": after,
            "n": count,
            "loss_before": found.before,
            "loss_after": found.after,
            "passes": found.passes,
            "encoded": found.encoded,
        }

    def _named(self, result: Result, forgotten: int) -> dict[str, float]:
        """Share of the cell's own samples of the forgotten class that show it, by kind of prompt."""
        images, labels = self.lab.samples(result)
        each = len(images) // len(self.lab.kinds)
        parts = zip(self.lab.kinds, images.split(each), labels.split(each), strict=True)
        return {kind: self.shown(part[asked == forgotten], forgotten) for kind, part, asked in parts}

    def _unnamed(self, model: nn.Module, forgotten: int, pieces: Pieces) -> tuple[Detections, Redacted]:
        prompts = self.unnamed(forgotten)
        scales = prompts.guidance or (self.lab.sampling.guidance,) * len(prompts)
        each = max(CHUNK, self.lab.sampling.sample_batch)
        parts: list[Detections] = []
        order: list[int] = []
        first: dict[int, tuple[Tensor, Tensor]] = {}
        with tqdm(total=len(prompts), desc="prompts", unit="image", leave=False, delay=SLOW) as bar:
            for scale in dict.fromkeys(scales):
                mine = [i for i, own in enumerate(scales) if own == scale]
                for rows in (mine[start : start + each] for start in range(0, len(mine), each)):
                    made = pieces(
                        f"{scale:g}-{rows[0]:07d}", partial(self._searched, model, forgotten, rows, scale)
                    )
                    fields = {name: made[name] for name in FIELDS}
                    parts.append(Detections(self.detector.card, len(rows), **fields))
                    order += rows
                    first |= zip(
                        rows, zip(made["pictures"], made["covered"].bool(), strict=True), strict=False
                    )
                    bar.update(len(rows))
        every = joined(parts)
        # Back in the order of the prompts, so that image i is prompt i for every model.
        found = Detections(
            every.card,
            every.n,
            torch.tensor(order)[every.images],
            every.labels,
            every.scores,
            every.boxes,
        )
        pictures, covered = (
            torch.stack(part)
            for part in zip(*(first[i] for i in range(min(self.how.pictures, found.n))), strict=True)
        )
        nothing = self._redacted(pictures[:0], found, forgotten)
        return found, Redacted(pictures, covered, nothing.note)

    def _searched(self, model: nn.Module, forgotten: int, rows: list[int], scale: float) -> dict[str, Tensor]:
        """Detections in the images for some of the prompts, and the first images of all, where they are among these."""
        chosen = self.unnamed(forgotten).rows(rows)
        streams = chosen.seeds or tuple(forgotten * STREAMS + i for i in rows)
        images = self._drawn(model, list(chosen.texts), forgotten, streams=streams, guidance=scale)
        found = detect(self.detector, images)
        # Never uncovered, not even for a run that goes on: what is kept may be shown.
        kept = self._redacted(images[: sum(row < self.how.pictures for row in rows)], found, forgotten)
        shown = {"pictures": kept.images, "covered": kept.covered.to(torch.uint8)}
        return {name: getattr(found, name) for name in FIELDS} | shown

    def _redacted(self, images: Tensor, found: Detections, forgotten: int) -> Redacted:
        rows = found.images < len(images)
        part = Detections(
            found.card,
            len(images),
            found.images[rows],
            found.labels[rows],
            found.scores[rows],
            found.boxes[rows],
        )
        # A detector of the body covers all it finds; a classifier finds something in every image.
        return redacted(images, part if found.card.localises else part.only(self.concept(forgotten)))

    def _drawn(
        self,
        model: nn.Module,
        prompts: Sequence[str] | Condition,
        forgotten: int,
        *,
        streams: Sequence[int] = (),
        guidance: float | None = None,
    ) -> Tensor:
        how = self.lab.sampling
        return sample_prompts(
            self.lab.pipe,
            prompts,
            unet=model,
            seed=0,
            streams=list(streams) or [forgotten * STREAMS + i for i in range(len(prompts))],
            guidance=how.guidance if guidance is None else guidance,
            steps=how.sample_steps,
            eta=how.eta,
            sampler=how.sampler,
            batch_size=how.sample_batch,
            bf16=self.lab.problem.bf16,
        )
