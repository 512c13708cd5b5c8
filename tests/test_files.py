"""Reading what users name: pipes never end, and not every home exists."""

import os
import signal
from pathlib import Path

import pytest

from salun_core.__main__ import main
from salun_core.data.captions_coco import read_coco_captions
from salun_core.data.prompts import read_i2p
from salun_core.data.splits import read_ids
from salun_core.errors import UserError
from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.runs.store import Key, Store
from salun_core.files import all_regular, read_config, read_json, regular, sha256
from salun_core.metrics.generation.detection import Detections
from salun_core.models.text_to_image.pipelines import load_pipeline
from salun_core.paths import expanded, project_root
from salun_core.saliency import load_mask


@pytest.fixture(autouse=True)
def soon():
    """What waits for a pipe is interrupted and fails."""

    def late(*_):
        raise TimeoutError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(path := tmp_path / "pipe")
    return path


READERS = (
    regular,
    read_config,
    sha256,
    read_ids,
    read_i2p,
    read_coco_captions,
    load_mask,
    Detections.load,
    lambda path: ClassificationParams.load(
        {"pretrained": str(path), "tune": False, "retrained": "train"}
    ).lab(),
)


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_or_a_device_is_not_opened(read, pipe):
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path} is a pipe, a socket or a device.*give a regular file"):
            read(path)


def test_a_damaged_record_may_be_a_pipe(pipe):
    assert read_json(pipe) is None


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "classification", "-f", "PIPE.yaml"],
        ["plan", "classification", "-p", "preset", "PIPE.yaml"],
        ["add", "PIPE.yaml"],
        ["merge", "FOLDER", "--into", "FOLDER/into"],
    ],
)
def test_no_command_waits_for_a_pipe(words, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    for folder in ("cells", "results"):
        (tmp_path / folder).mkdir()
    Store(tmp_path / "cells").put(Key("cell", {"number": 0}, "code"), {"status": "done"}, {"finished": "now"})
    os.mkfifo(tmp_path / "results" / "classification.json")
    there = [word.replace("PIPE", str(tmp_path / "pipe")).replace("FOLDER", str(tmp_path)) for word in words]
    assert main(there) == 2
    err = capsys.readouterr().err
    assert "give a regular file" in err and err.count("\n") == 1
    assert not (tmp_path / "into").exists()


def test_a_pipeline_with_a_pipe_in_it_is_refused(tmp_path):
    import shutil

    folder = shutil.copytree(project_root() / "data" / "models" / "tiny-sd", tmp_path / "sd")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    os.mkfifo(folder / "scheduler" / "scheduler_config.json")
    with pytest.raises(UserError, match="scheduler_config.json is a pipe"):
        load_pipeline(folder)
    with pytest.raises(UserError, match="scheduler_config.json is a pipe"):
        all_regular(folder)


def test_a_home_that_does_not_exist_is_named(capsys):
    assert expanded("~/x") == Path.home() / "x"
    with pytest.raises(UserError, match="~no-such-user/x begins with a user who is not known here"):
        expanded("~no-such-user/x")
    for name in ("out_dir", "data_dir"):
        given = {name: "~no-such-user/x", "dataset": "imagefolder" if name == "data_dir" else "digits"}
        words = [word for pair in given.items() for word in ("-p", *pair)]
        assert main(["plan", "classification", *words]) == 2
        assert "not known here" in capsys.readouterr().err
