"""A run on an image folder whose class folders are named to do harm, through the real notebooks to a browser."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from browsing import WIDE, launched, served, visit
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from nbformat.v4 import output_from_msg
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

# What Jupyter Book's own extensions warn of when Sphinx runs in this process.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (".*reduce_op.*:FutureWarning", ".*traverse.*:PendingDeprecationWarning")
]

ROOT = Path(__file__).parents[2]
IMAGE = "<img src=x onerror=alert(1)>"
NAMES = (IMAGE, '"><svg onload=alert(2)>', "[a](javascript:alert(3)) **b** $x^2$")
HARMED = "img[src=x], svg[onload], [onerror], a[href^=javascript]"  # made of a name
GIVEN = {
    "classification": {
        "dataset": "imagefolder",
        "arch": "resnet6",
        "width": 4,
        "epochs": 1,
        "scenario": ["class"],
        "forget_class": IMAGE,
        "methods": ["retrain", "ft", "salun"],
        "seeds": [0],
        "tune": False,
        "noise_floor": 0,
    },
    "explorer": {},
}


def image_folder(where: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for name in NAMES:
            (where / part / name).mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(picture).save(where / part / name / f"{i}.png")
    return where


def execute(source: Path, target: Path, given: dict) -> None:
    """Run a notebook's cells in this process, which has imported everything already."""
    notebook = json.loads(source.read_text("utf8"))
    shell = InteractiveShell.instance()  # `display` and `capture_output` ask for this one
    shell.display_trap.hook = lambda value: None if value is None else display(value)
    for count, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
        text = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            text += "".join(f"\n{name} = {value!r}" for name, value in given.items())
        with capture_output() as said:
            shell.run_cell(text, store_history=False).raise_error()
        cell["execution_count"] = count
        cell["outputs"] = [
            output_from_msg(
                {"header": {"msg_type": "display_data"}, "content": {"data": out.data, "metadata": {}}}
            )
            for out in said.outputs
        ]
        if said.stdout:
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": said.stdout})
    InteractiveShell.clear_instance()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook), "utf8")


def build(folder: Path) -> None:
    """Build these pages with the book's own settings; links to its other pages lead nowhere here."""
    from jupyter_book.config import get_final_config

    given = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
    config, _ = get_final_config(user_yaml=given, cli_config={"latex_individualpages": False})
    settings = given["sphinx"]["config"]
    config |= {
        "external_toc_path": "_toc.yml",
        "html_static_path": [str(ROOT / path) for path in settings["html_static_path"]],
        "html_logo": str(ROOT / given["logo"]),
        "html_favicon": str(ROOT / given["html"]["favicon"]),
        "bibtex_bibfiles": [str(ROOT / path) for path in given["bibtex_bibfiles"]],
        "companion_pictures": {},
        "companion_runs": "runs",
    }
    (folder / "index.md").write_text("# Home\n", "utf8")
    toc = {"format": "jb-book", "root": "index", "chapters": [{"file": f"notebooks/{n}"} for n in GIVEN]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc), "utf8")
    with patch_docutils(), docutils_namespace():
        out = folder / "html", folder / "trees", "html"
        Sphinx(folder, None, *out, config, status=None, warning=io.StringIO()).build()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "notebooks").mkdir()
    shared = {"out_dir": str(folder / "runs")}
    for name, given in GIVEN.items():
        template = ROOT / "notebooks" / f"{name}.ipynb"
        shutil.copy(template, folder / "notebooks")
        data = {"data_dir": str(image_folder(folder / "images"))} if "dataset" in given else {}
        execute(template, folder / "runs/notebooks" / template.name, {**given, **data, **shared})
    build(folder)
    return folder / "html"


def test_names_of_class_folders_are_text_in_a_browser(pages):
    with launched() as browser, served(pages) as address:

        def opened(page):
            shown, wrong = visit(browser, address + page, size=WIDE, scheme="light")
            return shown, lambda: wrong + shown.locator(HARMED).all()

        shown, faults = opened("notebooks/classification.html")
        assert IMAGE in shown.locator("article p", has_text="On this one seed").first.inner_text()
        assert shown.locator("article figcaption", has_text=IMAGE).first.is_visible()
        shown.locator(f".origin[title*='{IMAGE}']").first.hover(force=True)
        assert IMAGE in shown.locator("#origin-text").inner_text()
        assert faults() == []
        shown, faults = opened("notebooks/explorer.html")
        shown.locator(".dt-search input").fill("onerror")
        shown.locator(".dt-info", has_text="filtered").wait_for()
        assert IMAGE in shown.locator(".dt-scroll-body tbody").inner_text()
        assert faults() == []
        shown, faults = opened("search.html?q=onerror")
        shown.wait_for_selector("#search-results li a")
        assert faults() == []
