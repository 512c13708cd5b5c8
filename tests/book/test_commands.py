"""Commands that pages show are ones that the program takes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from salun_core.__main__ import parser
from salun_core.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"python -m salun_core +([^\n#|>]+)")


def commands() -> list[tuple[str, str]]:
    """Where a command is shown, and its words, of all blocks of code and of what the claims need."""
    texts = {file.name: file.read_text("utf8") for file in [*ROOT.glob("*.md"), *ROOT.glob("book/*.md")]}
    for file in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(file.read_text("utf8"))["cells"]
        texts[file.name] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    blocks = [(name, block) for name, text in texts.items() for block in FENCED.findall(text)]
    claims = yaml.safe_load((ROOT / "data/published/claims.yaml").read_text("utf8"))
    needs = re.findall(r"'command': '([^']*)'", str(claims))
    blocks += [("claims.yaml", command) for command in needs]
    return [(name, found) for name, block in blocks for found in COMMAND.findall(block.replace("\\\n", " "))]


def test_commands_were_found_on_several_pages():
    assert {"rerun.md", "sd_class.ipynb", "claims.yaml"} <= {name for name, _ in commands()}


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_on_a_page_is_one_that_the_program_takes(page, command, capsys):
    try:
        given = parser().parse_args(shlex.split(command))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    if experiment := getattr(given, "experiment", None):
        params = EXPERIMENTS[experiment].params
        if getattr(given, "preset", None):
            assert params.read_preset(given.preset)
        assert {name for name, _ in getattr(given, "parameter", [])} <= set(params.declared())
