"""The library as someone uses it who has a model and loaders of their own, and nothing else of this project."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from problems import same, small_network, trained_task
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import salun_core
from salun_core import METHODS, classification_task, evaluate, saliency_mask
from salun_core.errors import UserError
from salun_core.metrics.classification.report import Report

ROOT = Path(__file__).parents[1]


def python(code, *words, cwd):
    """Run a program of its own; it sees the library as an installed package would be seen."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code), *map(str, words)],
        cwd=cwd,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "HOME": str(cwd),
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "131072",  # what is freed goes back to the system at once
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaders():
    parts = trained_task().parts
    return {
        role: DataLoader(
            TensorDataset(part._scaled(part.images), part.labels), batch_size=64, shuffle=role == "retain"
        )
        for role, part in parts.items()
    }


def test_importing_the_package_is_cheap_and_loads_no_torch(tmp_path):
    code = """
        import sys, time
        start = time.perf_counter()
        import salun_core
        seconds = time.perf_counter() - start
        heavy = {"torch", "numpy", "pandas", "pydantic"} & set(sys.modules)
        print(min(seconds, 9), sorted(heavy), salun_core.__version__)
    """
    seconds, heavy, version = min(python(code, cwd=tmp_path).split(maxsplit=2) for _ in range(3))
    assert float(seconds) < 0.2
    assert heavy == "[]"
    assert version.strip() == salun_core.__version__


def test_an_experiment_of_classifiers_loads_nothing_of_generation(tmp_path):
    code = """
        import sys
        import salun_core.experiments
        import salun_core.pages.figures.classification, salun_core.pages.tables.runs
        print(sorted({"torchvision", "diffusers", "transformers", "peft"} & set(sys.modules)))
    """
    assert python(code, cwd=tmp_path).strip() == "[]"


@pytest.mark.parametrize("name", salun_core.__all__)
def test_every_public_name_is_listed_documented_and_found(name):
    assert name in dir(salun_core)
    assert getattr(salun_core, name).__doc__
    with pytest.raises(AttributeError, match="salience"):
        salun_core.salience  # noqa: B018


def test_type_checkers_see_the_names_that_are_imported_lazily():
    text = (ROOT / "salun_core" / "__init__.py").read_text("utf8")
    for name, home in salun_core._HOMES.items():
        assert f"    from {home} import {name} as {name}\n" in text


THE_TEN_LINES = """
from salun_core import METHODS, classification_task, evaluate, saliency_mask

task = classification_task(model, forget=forget_loader, retain=retain_loader)
mask = saliency_mask(model, forget_loader, task.loss, keep=0.5)
unlearned = METHODS["salun"](task, mask=mask, epochs=5, lr=0.01)
report = evaluate(unlearned.model, forget=forget_loader, retain=retain_loader, test=test_loader)
print(report)  # UA, RA, TA, MIA with n and intervals, and against `reference=` if given
"""


@pytest.mark.parametrize("form", ["tensors", "dicts"])
def test_the_ten_lines_run_as_written_without_the_experiments(tmp_path, form):
    setting = """
        import sys
        import torch
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset, default_collate

        torch.manual_seed(0)
        centres = torch.randn(4, 3, 6, 6)
        labels = torch.arange(400) % 4
        images = centres[labels] + torch.randn(400, 3, 6, 6)

        class Output:
            def __init__(self, logits):
                self.logits = logits

        class Classifier(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))

            def forward(self, pixel_values):
                logits = self.body(pixel_values)
                return Output(logits) if sys.argv[1] == "dicts" else logits

        def collate(rows):
            pixels, labels = default_collate(rows)
            return {"pixel_values": pixels, "labels": labels} if sys.argv[1] == "dicts" else (pixels, labels)

        def loader(first, last, **more):
            return DataLoader(TensorDataset(images[first:last], labels[first:last]), 32, collate_fn=collate, **more)

        model = Classifier()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(30):
            out = model(images[:300])
            loss = nn.functional.cross_entropy(getattr(out, "logits", out), labels[:300])
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        forget_loader, retain_loader = loader(0, 60), loader(60, 300, shuffle=True)
        test_loader = loader(300, 400)
    """
    after = """
        print([m for m in sys.modules if m.startswith(("salun_core.experiments", "salun_core.pages"))])
        print([m for m in ("diffusers", "matplotlib", "torchvision", "peft", "papermill") if m in sys.modules])
    """
    shown = python(
        textwrap.dedent(setting) + THE_TEN_LINES + textwrap.dedent(after), form, cwd=tmp_path
    ).splitlines()
    assert shown[-2:] == ["[]", "[]"]
    rows = {line.split()[0]: line for line in shown[1:-2]}
    assert list(rows) == ["UA", "RA", "TA", "MIA"]
    assert rows["UA"].endswith(" 60") and rows["RA"].endswith(" 240") and rows["TA"].endswith(" 100")


def test_the_ten_lines_stand_in_the_readme():
    assert THE_TEN_LINES.strip() in (ROOT / "README.md").read_text("utf8")


def test_the_report_is_that_of_the_metrics_worked_out_by_hand():
    task, parts = trained_task(), loaders()
    report = evaluate(task.model, **parts)
    with torch.no_grad():
        wrong = sum(int((task.model(x).argmax(1) != y).sum()) for x, y in parts["forget"])
    assert report["UA"].value == pytest.approx(wrong / 120)
    assert (report["UA"].n, report["RA"].n, report["TA"].n, report["MIA"].n) == (120, 880, 400, 120)
    assert report["UA"].low < report["UA"].value < report["UA"].high
    assert not task.model.training
    again = evaluate(task.model, forget=task.forget, retain=task.retain, test=task.parts["test"])
    assert {name: share.value for name, share in report.shares.items() if name != "MIA"} == {
        name: share.value for name, share in again.shares.items() if name != "MIA"
    }


def test_gaps_are_to_the_model_given_as_reference():
    task, parts = trained_task(), loaders()
    other = METHODS["rl"](task, epochs=4, lr=0.05).model
    report = evaluate(other, **parts, reference=task.model)
    plain = evaluate(task.model, **parts)
    assert report.gaps["UA"] == pytest.approx(abs(report["UA"].value - plain["UA"].value))
    assert report.gaps["Avg. Gap"] == pytest.approx(
        sum(report.gaps[m] for m in ("UA", "RA", "TA", "MIA")) / 4
    )
    assert evaluate(other, **parts, reference=plain).gaps == report.gaps
    assert plain.gaps == {}
    shown = str(report)
    assert f"{100 * report.gaps['Avg. Gap']:.1f}%" in shown.splitlines()[-1]
    assert json.loads(json.dumps(report.to_dict()))["UA"]["n"] == 120


def test_without_test_images_the_report_says_what_is_missing():
    parts = loaders()
    del parts["test"]
    report = evaluate(trained_task().model, **parts)
    assert "give test=" in str(report)
    assert report.to_dict()["TA"]["value"] is None
    with pytest.raises(UserError, match="the forget set holds no images"):
        evaluate(trained_task().model, forget=[], retain=parts["retain"])


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_wrong_label_in_a_later_batch_is_named(wrong):
    parts = loaders()
    images, labels = next(iter(parts["test"]))
    with pytest.raises(UserError, match=f"label {wrong}, but the model has classes 0 to 9"):
        evaluate(trained_task().model, **{**parts, "test": [(images, labels), (images, labels * 0 + wrong)]})


def test_the_lines_for_generators_in_the_chapter_on_your_data_run():
    from diffusers import DDPMScheduler

    from salun_core.models.diffusion.unet import build_unet
    from salun_core.models.text_to_image.tiny_pipeline import build_tiny_sd

    cells = json.loads((ROOT / "notebooks" / "your_data.ipynb").read_text("utf8"))["cells"]
    (text,) = ("".join(c["source"]) for c in cells if "diffusion_task(" in "".join(c["source"]))
    diffusion, prompted = text.split("```python\n")[1].split("```")[0].split("\n\n")
    rng = torch.Generator().manual_seed(0)
    pictures = torch.rand(8, 1, 8, 8, generator=rng)
    given: dict = {name: getattr(salun_core, name) for name in salun_core.__all__}
    given |= {
        "unet": build_unet(classes=2, channels=1, size=8, widths=(8, 16), layers=1, seed=0),
        "scheduler": DDPMScheduler(),
        "forget_loader": [(pictures[:4], torch.zeros(4, dtype=torch.int64))],
        "retain_loader": [(pictures[4:], torch.ones(4, dtype=torch.int64))],
    }
    exec(diffusion, given)
    assert not same(given["unlearned"].model, given["unet"])
    sizes = {"widths": (8, 16), "autoencoder": (8, 16), "text_width": 16, "text_layers": 1}
    given["pipe"] = build_tiny_sd(("a", "photo", "of", "cat", "dog"), size=8, text_length=8, seed=0, **sizes)
    given["forget_loader"] = [(pictures[:4], ["a photo of a cat"] * 4)]
    given["retain_loader"] = [(pictures[4:], ["a photo of a dog"] * 4)]
    exec(prompted, given)
    assert not same(given["unlearned"].model, given["pipe"].unet)


def test_a_method_leaves_the_callers_model_and_random_numbers_alone():
    model = small_network(3)
    before, state = small_network(3), torch.get_rng_state()
    parts = loaders()
    task = classification_task(model, forget=parts["forget"], retain=parts["retain"], test=parts["test"])
    mask = saliency_mask(model, parts["forget"], task.loss)
    unlearned = METHODS["salun"](task, mask=mask, steps=3, lr=0.01)
    assert isinstance(evaluate(unlearned.model, **parts), Report)
    assert same(model, before) and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(unlearned.model, nn.Module)


class Scaling(nn.Module):
    """Normalises what it is given in place, as some published networks do."""

    def __init__(self):
        super().__init__()
        self.inner = small_network(3)

    def forward(self, images):
        return self.inner(images.sub_(0.5).mul_(2))


def test_a_network_that_writes_into_its_images_leaves_the_callers_batches_alone():
    held = {name: list(loader) for name, loader in loaders().items()}
    copies = {name: [tuple(t.clone() for t in batch) for batch in part] for name, part in held.items()}
    task = classification_task(Scaling(), forget=held["forget"], retain=held["retain"])
    unlearned = METHODS["rl"](task, steps=3, lr=0.01)
    first, second = (evaluate(unlearned.model, **held) for _ in range(2))
    assert str(first) == str(second)
    for name, part in held.items():
        assert all(
            torch.equal(a, b)
            for batch, copy in zip(part, copies[name], strict=True)
            for a, b in zip(batch, copy, strict=True)
        )


def test_weights_that_are_not_finite_are_refused_at_once():
    model = small_network(3)
    next(model.parameters()).data[0] = float("nan")
    parts = loaders()
    with pytest.raises(UserError, match="the model has weights that are not finite"):
        classification_task(model, forget=parts["forget"], retain=parts["retain"])


def test_a_mask_without_its_name_is_asked_for_by_name():
    model, parts = small_network(3), loaders()
    task = classification_task(model, forget=parts["forget"], retain=parts["retain"])
    mask = saliency_mask(model, parts["forget"], task.loss)
    with pytest.raises(UserError, match="without a name: write mask="):
        METHODS["salun"](task, mask)


STREAMED = """
    import resource
    import sys
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from salun_core import METHODS, classification_task, evaluate, saliency_mask
    from salun_core.methods import methods_for

    class Folder(Dataset):
        "Decodes a picture when it is asked for."

        def __init__(self, files):
            self.files = files

        def __len__(self):
            return len(self.files)

        def __getitem__(self, row):
            pixels = np.asarray(Image.open(self.files[row]), dtype=np.float32) / 255
            return torch.from_numpy(pixels).permute(2, 0, 1), int(self.files[row].stem) % 3

    files = sorted(Path(sys.argv[1]).glob("*.jpg"))
    model = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3))

    def loader(part, **more):
        return DataLoader(Folder(part), batch_size=8, **more)

    def work():
        few, forget, retain = loader(files[:8]), loader(files[:160]), loader(files[160:400], shuffle=True)
        test = loader(files[400:])
        warm = classification_task(model, forget=few, retain=few)
        evaluate(METHODS["iu"](warm, samples=2).model, forget=few, retain=few, test=few)
        used = next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmData" in x)
        limit = used * 1024 + 60 * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        task = classification_task(model, forget=forget, retain=retain)
        mask = saliency_mask(model, forget, task.loss, keep=0.5)
        for name in methods_for("classification"):
            if name != "retrain":
                more = {"iu": {"samples": 20}, "original": {}, "salun": {"epochs": 1}, "ssd": {}}.get(name, {"steps": 6})
                result = METHODS[name](task, mask=mask, **more)
        print(evaluate(result.model, forget=forget, retain=retain, test=test))

    work()
    try:
        held = list(loader(files))
    except (RuntimeError, MemoryError):
        print("the images do not fit")
"""


@pytest.mark.parametrize("name", ["build", "recipe", "retain"])
def test_a_setting_of_the_task_is_sent_to_it(name):
    parts = loaders()
    task = classification_task(small_network(0), forget=parts["forget"], retain=parts["retain"])
    for method in ("retrain", "salun"):
        label = METHODS[method].label
        with pytest.raises(
            UserError,
            match=rf"unknown setting of {label} '{name}': it is one of the task, give it to classification_task\(…, {name}=…\)",
        ):
            METHODS[method](task, **{name: None})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as Linux does it")
def test_a_set_larger_than_memory_is_streamed_by_every_method(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (480, 7, 7, 3), dtype=np.uint8)
    for number, block in enumerate(blocks):
        Image.fromarray(block).resize((224, 224), 0).save(tmp_path / f"{number:04}.jpg")
    shown = python(STREAMED, tmp_path, cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in shown[1:5]] == ["UA", "RA", "TA", "MIA"]
    assert shown[1].endswith(" 160") and shown[2].endswith(" 240") and shown[3].endswith(" 80")
    assert shown[-1] == "the images do not fit"  # all of them are 289 MB, more than was to spare
