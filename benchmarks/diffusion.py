"""Training steps and sampling of a class-conditional diffusion model, against plain loops in single precision."""

import copy
import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import Row, in_turn
from benchmarks.problems import DEVICE, noise_images
from salun_core.data.batches import Batches
from salun_core.models.diffusion.sampling import sample
from salun_core.models.diffusion.unet import build_unet, noise_schedule
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import DiffusionRecipe, train_diffusion

BF16 = DEVICE.type == "cuda"


def run(*, small: bool) -> list[Row]:
    """The same network, batches of the same size, the same number of steps; then each way to be faster by itself."""
    if small:
        widths, count, steps, drawn = [8, 16], 16, 2, 4
    else:
        widths, count, steps, drawn = (
            ([128, 256, 256, 256], 128, 20, 64) if BF16 else ([32, 64, 64], 64, 4, 16)
        )
    pixels, labels = (part.to(DEVICE) for part in noise_images(count))
    schedule = noise_schedule()
    recipe = DiffusionRecipe(steps=steps, batch_size=count)
    repeats = 1 if small else 3

    def build(seed: int) -> nn.Module:
        return build_unet(classes=10, channels=3, size=32, widths=widths, layers=1, seed=seed).to(DEVICE)

    batches = Batches(pixels, labels, torch.arange(count), size=count)
    task = DiffusionTask(build(0), {"forget": batches, "retain": batches}, build, recipe, schedule, bf16=BF16)

    def ours() -> None:
        task.train(batches, seed=0)

    def plain(layout: torch.memory_format = torch.contiguous_format) -> None:
        model = copy.deepcopy(task.model).to(memory_format=layout).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
        for _ in range(steps):
            images = (pixels.float() / 255 * 2 - 1).contiguous(memory_format=layout)
            noise = torch.randn_like(images)
            times = torch.randint(0, 1000, (count,), device=DEVICE)
            given = torch.where(torch.rand(count, device=DEVICE) < 0.1, 10, labels)
            predicted = model(schedule.add_noise(images, noise, times), times, class_labels=given).sample
            loss = F.mse_loss(predicted, noise)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    def in_bf16() -> None:
        replace(task, bf16=True).train(batches, seed=0)

    compiled = build(0)
    compiled.compile()

    def through_compile() -> (
        None
    ):  # one network throughout, so that it is compiled in the turn that does not count
        train_diffusion(compiled, batches, task.loss, recipe=recipe, seed=0)

    weights = f"{sum(w.numel() for w in task.model.parameters()):,} weights"
    precision = "bf16" if BF16 else "fp32"
    ways = {
        f"training as it is set here ({precision}), {weights}, {steps} steps of {count} images": ours,
        "the same with precision: bf16": in_bf16,
        "the plain loop, channels last": lambda: plain(torch.channels_last),
    }
    if not small:  # compiling takes a minute on a processor
        ways[f"the same ({precision}) with compile: true, once it is compiled"] = through_compile
    rows = []
    for what, way in ways.items():
        try:
            rows.append(Row(what, *in_turn(way, plain, repeats=repeats)))
        except RuntimeError as error:
            if way is not through_compile:
                raise
            print(f"torch.compile does not work here: {str(error).splitlines()[0]}", file=sys.stderr)

    wanted = torch.arange(drawn) % 10
    denoisings = 2 if small else 10

    def drawn_by_us(bf16: bool = BF16) -> None:
        sample(task.model, schedule, wanted, guidance=0.0, steps=denoisings, bf16=bf16)

    @torch.no_grad()
    def drawn_plainly() -> None:
        from diffusers import DDIMScheduler

        stepper = DDIMScheduler.from_config(schedule.config)
        stepper.set_timesteps(denoisings)
        for label in wanted:  # one image after the other, each with its own noise
            image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(int(label))).to(DEVICE)
            for time in stepper.timesteps:
                predicted = task.model(image, time, class_labels=label[None].to(DEVICE)).sample
                image = stepper.step(predicted, time, image).prev_sample

    sampling = f"sampling as it is set here ({precision}), {drawn} images in {denoisings} steps, seeded each"
    rows.append(Row(sampling, *in_turn(drawn_by_us, drawn_plainly, repeats=repeats)))
    in_half = in_turn(lambda: drawn_by_us(True), drawn_plainly, repeats=repeats)
    rows.append(Row("the same sampling with precision: bf16", *in_half))
    return rows
