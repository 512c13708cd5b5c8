import pytest

from salun_core.data.captions import FACTS, NAMES
from salun_core.data.prompts import (
    CLASS_FORGET,
    I2P_ROWS,
    IMAGENETTE,
    MOST_BYTES,
    PromptSet,
    class_prompts,
    digit_prompts,
    read_i2p,
    read_prompts,
)
from salun_core.errors import UserError

HEADER = "prompt,categories,sd_seed,sd_guidance_scale\n"


def written(tmp_path, text, name="prompts.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_i2p_is_read_with_seed_guidance_and_categories(tmp_path):
    text = HEADER + '"a, ""quoted"" prompt\nof two lines","hate, sexual",17,7.5\n b ,violence,3000000000,7\n'
    found = read_i2p(written(tmp_path, text), rows=2)
    assert found.texts == ('a, "quoted" prompt\nof two lines', "b")
    assert found.seeds == (17, 3_000_000_000)
    assert found.guidance == (6.5, 6.0)
    assert found.categories == (("hate", "sexual"), ("violence",))
    assert found.about("sexual").texts == found.texts[:1]
    assert found.about("sexual").seeds == (17,)
    assert found.about("sexual").digest == found.digest


def test_the_copy_of_i2p_that_comes_with_the_released_code_is_read(tmp_path):
    text = ",prompt,categories,hard,evaluation_seed,evaluation_guidance,case_number\n"
    text += '0,"a, b","hate, sexual",1,4261553411,13,0\n1,,illegal activity,1,4261564198,7,1\n'
    found = read_i2p(written(tmp_path, text, "unsafe-prompts4703.csv"), rows=2)
    assert found.texts == ("a, b", "")
    assert found.seeds == (4_261_553_411, 4_261_564_198)
    assert found.guidance == (12.0, 6.0)
    assert found.about("illegal activity").texts == ("",)


def test_the_whole_of_i2p_is_wanted_unless_said_otherwise(tmp_path):
    path = written(tmp_path, HEADER + "a,hate,1,7\n")
    with pytest.raises(UserError, match=f"1 prompts instead of {I2P_ROWS}"):
        read_i2p(path)
    assert len(read_i2p(path, rows=None)) == 1


def test_prompts_are_data(tmp_path):
    said = ["=cmd|' /C calc'!A0", "{0.__class__}", "<script>alert(1)</script>", "%s $(rm -rf /)"]
    path = written(tmp_path, "prompt\n" + "\n".join(f'"{s}"' for s in said))
    assert list(read_prompts(path).texts) == said


def test_the_digest_is_that_of_the_file(tmp_path):
    a = read_prompts(written(tmp_path, "prompt\nx\n", "a.csv"))
    b = read_prompts(written(tmp_path, "prompt,more\nx,y\n", "b.csv"))
    assert a.texts == b.texts and a.digest != b.digest
    assert PromptSet("p", ("x",)).digest == PromptSet("q", ("x",)).digest != PromptSet("p", ("y",)).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\nx\n", "no column 'prompt': it has 'text'"),
        ("", "no column 'prompt': it has none"),
        ("prompt\n", "holds no prompts"),
        ("prompt,prompt\na,b\n", "has the column 'prompt' twice"),
        ("prompt\n   \n", "row 1 .* 0 characters"),
        ("prompt\n" + "x" * 10_001 + "\n", "10001 characters"),
        ("prompt\nx,y\n", "row 1 .* as many fields"),
        ("prompt,more\nx\n", "row 1 .* as many fields"),
        (b"prompt\n\xff\xfe\n", "not UTF-8"),
        (b"prompt\nx\0y\n", "not a text file"),
        ('prompt\n"open\n', "not valid CSV"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_prompts(written(tmp_path, text))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,hate,one,7\n", "'one' for sd_seed"),
        ("a,hate,1,x\n", "'x' for sd_guidance_scale"),
        ("a,hate,1,nan\n", "sd_guidance_scale"),
        ("a,hate,1,0.5\n", "give 1 to 1000"),
        ("x" * 10_001 + ",hate,1,7\n", "10001 characters"),
    ],
)
def test_a_number_that_is_none_is_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_i2p(written(tmp_path, HEADER + row), rows=1)


def test_missing_and_huge_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read .*i2p_benchmark.csv"):
        read_i2p(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot read"):
        read_prompts(tmp_path)
    big = tmp_path / "big.csv"
    with open(big, "wb") as file:
        file.truncate(MOST_BYTES + 1)  # sparse: takes no space
    with pytest.raises(UserError, match="more than 64"):
        read_prompts(big)


def test_every_kind_asks_for_the_digit_and_only_direct_ones_name_it():
    for digit in range(10):
        sets = digit_prompts(digit)
        assert list(sets) == ["direct", "indirect", "misspelt", "composed"]
        assert all(NAMES[digit] in text for text in sets["direct"].texts)
        assert not any(NAMES[digit] in text.split() for text in sets["indirect"].texts)
        assert not any(NAMES[digit] in text.split() for text in sets["misspelt"].texts)
        assert all(any(fact in text for fact in FACTS[digit]) for text in sets["indirect"].texts)
        for kind, found in sets.items():
            trained = digit_prompts(digit, "train")[kind]
            assert not set(found.texts) & set(trained.texts)


def test_the_classes_of_imagenette():
    assert len(IMAGENETTE) == 10
    assert sorted(IMAGENETTE.values()) == list(IMAGENETTE.values())
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    assert {name: names[number] for name, number in IMAGENETTE.items()} == {n: n for n in IMAGENETTE}
    assert class_prompts(["church"])["church"].texts == ("Image of church",)
    assert class_prompts(["church"], [CLASS_FORGET])["church"].texts == ("an image of a church",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: digit_prompts(10), "no digit 10"),
        (lambda: class_prompts(["x"], ["none"]), "must hold {} once"),
        (lambda: PromptSet("mine", ("a", "b"), seeds=(1,)), "2 prompts and 1 seeds"),
        (lambda: PromptSet("mine", ("a",), categories=(("hate",),)).about("hat"), "did you mean 'hate'"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_seed_that_no_generator_takes_is_refused(tmp_path):
    (path := tmp_path / "i2p.csv").write_text(
        f"prompt,sd_seed,categories,sd_guidance_scale\na,{'9' * 32},x,7\n"
    )
    with pytest.raises(UserError, match="row 1 of .* for sd_seed: give a whole number of at most 15 digits"):
        read_i2p(path, rows=None)
