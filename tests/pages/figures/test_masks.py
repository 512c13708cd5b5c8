"""Figures of masks."""

import pandas as pd
import pytest
import result_frames

from salun_core.pages.figures import masks


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (
            [
                "net.conv1.weight",
                "net.stages.0.a.weight",
                "net.stages.0.b.bias",
                "net.stages.1.a.weight",
                "net.fc.bias",
            ],
            [(0, 0, "conv1"), (1, 2, "stages.0"), (3, 3, "stages.1"), (4, 4, "fc")],
        ),
        (["0.weight", "0.bias", "2.weight"], [(0, 1, "0"), (2, 2, "2")]),
        (["weight", "bias"], [(0, 0, "weight"), (1, 1, "bias")]),
        (["fc.weight"], [(0, 0, "weight")]),
    ],
)
def test_tensors_are_grouped_by_the_part_of_the_network(names, groups):
    assert masks.groups_of(names) == groups


def test_the_bars_of_a_deep_network_carry_the_names_of_its_parts():
    names = ["net.conv1.weight"]
    names += [f"net.stages.{stage}.conv{i}.weight" for stage in range(4) for i in range(15)]
    layers = pd.DataFrame({"layer": names, "weights": 10, "kept": 5, "share": 0.5})
    axis = masks.salient_by_layer(layers, keep=0.5).figure.axes[0]
    shown = dict(zip((t.get_text() for t in axis.get_xticklabels()), axis.get_xticks(), strict=True))
    assert shown == {"conv1": 0, "stages.0": 8, "stages.1": 23, "stages.2": 38, "stages.3": 53}


@pytest.mark.parametrize(("further", "scale"), [(0.05, "linear"), (0.9, "symlog")])
def test_masks_are_compared_on_a_plain_scale_unless_one_is_far_off(further, scale):
    cells = result_frames.masks()
    cells.loc[cells["mask"] == "least_salient", ["UA", "MIA"]] += further
    axis = masks.masks_compared(cells, cells["scenario"].iloc[0]).figure.axes[0]
    assert axis.get_yscale() == scale
