"""What users give is refused in one sentence before anything is computed."""

import math

import pytest
from hypothesis import given as drawn
from hypothesis import settings, strategies

from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.runs.plain_values import check_plain, numeric, read_yaml
from salun_core.methods import METHODS, methods_for


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep: 0.5\nkeep: 0.6", "line 2.*'keep' once"),
        ("settings: {rl: {lr: 1, lr: 2}}", "'lr' once"),
        ("1: 2", "value for 1: .* must be text"),
        ("true: 2", "value for True: .* must be text"),
        ("keep: " + "[" * 3000, "nest too deep"),
        ("a: &x [1]\nb: *x", "line 2.*references"),
        ("seeds: [" + "9" * 5000 + "]", "valid YAML"),
        ("day: 2024-02-31", "valid YAML"),
        ("- 1\n- 2", "name: value"),
        ("keep: [", "line"),
        ("keep: !!bool maybe", "line 1.*leave out the tag"),
        ('keep: !!int ""', "leave out the tag"),
        ("keep: !!timestamp never", "leave out the tag"),
        ("seeds: !!set {1, 2}", "leave out the tag"),
        ('note: "\\UFFFFFFFF"', "valid YAML"),
        ("<<: {keep: 0.5}\nkeep: 0.6", "line 1.*merges"),
        ("settings: {rl: {lr: 1, <<: {lr: 2}}}", "merges"),
        ("#" * 10**6 + "\nkeep: 1", "more than 1,000,000 bytes"),
    ],
)
def test_yaml_that_hides_a_mistake_is_refused(text, message, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        2**53,
        pytest.param(10**5000, id="huge"),
        "\0",
        "\ud800",
        "x" * 10_001,
        b"x",
        {1: 2},
        [[math.nan]],
        object(),
    ],
)
def test_what_no_parameter_can_be_is_refused_wherever_it_stands(value):
    nested = 1
    for _ in range(3000):
        nested = [nested]
    for wrong in (value, [value], {"a": [value]}, nested):
        with pytest.raises(UserError, match="^keep"):
            check_plain("keep", wrong)


def test_text_is_read_as_the_number_it_is():
    assert numeric("1e-4") == 1e-4
    assert repr(numeric("5")) == "5"
    assert numeric("many") == "many"


WRONG = [math.nan, math.inf, "nan", "inf", "abc", -1, True, [], {}, None, "1e400"]


@pytest.mark.parametrize("method", METHODS)
def test_wrong_settings_and_bounds_of_every_method_are_refused_first(method):
    kinds = {name: EXPERIMENTS[name].params for name in ("classification", "diffusion", "text_to_image")}
    for name, default in METHODS[method].defaults.items():
        if not isinstance(default, float):
            continue
        for kind, params in kinds.items():
            if method not in methods_for(kind):
                continue
            for value in WRONG:
                with pytest.raises(UserError, match=name):
                    params.load({"settings": {method: {name: value}}})
        if method in methods_for("classification"):
            for value in WRONG[:3]:
                for bounds in ({"low": value, "high": value}, {"choices": [0.1, value]}):
                    with pytest.raises(UserError, match="search"):
                        ClassificationParams.load({"search": {method: {name: bounds}}})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_number_of_any_experiment_is_a_truth_value_infinite_or_endless(experiment):
    params = EXPERIMENTS[experiment].params
    for name, (_, field) in params.declared().items():
        kinds = str(field.annotation)
        if "int" not in kinds and "float" not in kinds:
            continue
        for wrong in (True, math.inf, 10**17 if "tuple" in kinds or "float" in kinds else 10**10):
            with pytest.raises(UserError, match=name):
                params.load({name: wrong})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_list_of_any_experiment_takes_an_entry_twice(experiment):
    params = EXPERIMENTS[experiment].params
    for name, (_, field) in params.declared().items():
        if "tuple" not in str(field.annotation) or field.json_schema_extra["repeats"]:
            continue
        entry = (field.default or params.load({}).shown()[name] or ["1"])[0]
        with pytest.raises(UserError, match=name):
            params.load({name: [entry, entry]})


PLAIN = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(strategies.characters(), max_size=8),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=3) | strategies.integers(), inner, max_size=2)
    ),
    max_leaves=5,
)
EVERY = [(name, known) for name, e in EXPERIMENTS.items() for known in e.params.declared()]


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@drawn(place=strategies.sampled_from(EVERY), value=PLAIN)
def test_whatever_is_given_is_taken_or_refused_in_one_sentence(place, value):
    experiment, name = place
    said = ""
    try:
        EXPERIMENTS[experiment].params.load({name: value})
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 600
