import json
from pathlib import Path

from salun_core.pages.cost import large_folder, scaling


def test_the_page_shows_what_was_measured_or_says_that_nothing_was(tmp_path):
    file = tmp_path / "scaling.json"
    assert "Not measured" in scaling(Path(), measured=file).text
    found = {"cells": 100, "cell_files": 200, "cell_bytes": 100 * 2048, "shards": 10, "shard_files": 31}
    found |= {"plain_seconds": 300.0, "shard_seconds": 6.0, "seconds": {"1": 360.0, "4": 90.0, "2": 180.0}}
    found["machine"] = {"device": "cpu", "processors": 4, "revision": "abc", "finished": "2026-11-24T00:00"}
    file.write_text(json.dumps(found))
    text = scaling(Path(), measured=file).text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:5]]
    assert rows == [
        ["1", "6.0", "1,000", "1.00"],
        ["2", "3.0", "2,000", "2.00"],
        ["4", "1.5", "4,000", "4.00"],
    ]
    assert "2.0 files and 2 KiB" in text and "3.1 files" in text and "6.0 seconds on top" in text


def test_images_larger_than_memory_are_told_as_measured(tmp_path):
    file = tmp_path / "large_folder.json"
    assert "Not measured" in large_folder(Path(), measured=file).text
    found = {
        "images": 100_000,
        "decoded_bytes": 15.1e9,
        "limit_bytes": 4e9,
        "peak_bytes": 1.7e9,
        "seconds": 1200.0,
    }
    found["machine"] = {"device": "cpu", "revision": "abc", "finished": "2026-11-24T00:00"}
    file.write_text(json.dumps(found))
    text = large_folder(Path(), measured=file).text
    assert "100,000 JPEG files, 15.1 GB" in text and "limited to 4 GB" in text
    assert "20 minutes with 1.7 GB" in text and "revision abc, 2026-11-24" in text
