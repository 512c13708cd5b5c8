from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--book", type=Path, help="folder of built pages for test_pages.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Importing what is then left out takes `make quick` a third of its minute.
    if "not long" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    return True if "\npytestmark = pytest.mark.long\n" in collection_path.read_text("utf8") else None


RUNS = ("experiments", "test_cli.py", "test_benchmarks.py", "test_library.py", "test_package.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        first = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker("book" if first == "book" else "run" if first in RUNS else "unit")
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="torch sees no accelerator"))


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """Give every test the same random numbers and one thread, whatever ran before it."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - some libraries draw from the global generator
    torch.set_num_threads(1)
