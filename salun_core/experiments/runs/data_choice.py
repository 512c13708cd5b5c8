"""Parameters that say which images an experiment works on."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from salun_core.data import DATASETS, ImageData, load_dataset
from salun_core.data.images import fewer, only
from salun_core.errors import UserError
from salun_core.experiments.runs.params import Group, parameter

READ = "the digest of the images read is part of the key in its place"


class DataChoice(Group):
    """A data set, and the size its images are brought to."""

    dataset: str = parameter("digits", ", ".join(DATASETS) + ", module:NAME", no_effect=READ)
    data_dir: Path | None = parameter(
        None,
        "where its files are; for imagefolder: train/<class>/* and test/<class>/*",
        no_effect=READ,
    )
    image_size: int | None = parameter(None, "pixels; resize all images", ge=4, le=1024, no_effect=READ)
    only_classes: tuple[str, ...] = parameter(
        (), "use only these classes, by name; all by default", no_effect=READ
    )
    train_images: int | None = parameter(
        None, "use only this many training images, drawn by class; all by default", ge=2, no_effect=READ
    )
    crop: int | None = parameter(
        None,
        "pixels by which training shifts images at random; the data set's own by default",
        ge=0,
        no_effect="the augmentation is part of the key in its place",
    )

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"dataset": (DATASETS, "data set")}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dataset == "imagefolder" and self.data_dir is None:
            raise UserError(
                "dataset imagefolder needs data_dir: a folder with train/<class>/ and test/<class>/"
            )
        return self

    def load(self, *, size: int | None = None) -> ImageData:
        """Read the images, at ``size`` pixels unless a size was chosen."""
        data = load_dataset(self.dataset, self.data_dir, size=self.image_size or size)
        data = fewer(only(data, self.only_classes), self.train_images)
        if self.crop is None:
            return data
        if self.crop >= (side := data.images.shape[-1]):
            raise UserError(
                f"crop {self.crop} shifts images of {side} pixels out of sight: choose a smaller one"
            )
        return replace(data, pad=self.crop)
