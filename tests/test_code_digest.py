import pytest

from salun_core.code_digest import code_digest, forget_files, imported_files, search_path
from salun_core.errors import UserError


def test_an_installed_package_does_not_count_the_packages_beside_it(tmp_path, monkeypatch):
    site = tmp_path / "lib" / "site-packages"
    for name, text in {
        "salun_core/__init__.py": "",
        "salun_core/one.py": "import numpyish\nfrom salun_core import two",
        "salun_core/two.py": "import mine",
        "numpyish.py": "import numpyish_parts",
        "numpyish_parts.py": "",
    }.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.py").write_text("")
    found = imported_files(["salun_core.one"], (site, tmp_path / "work"), tables=False)
    assert sorted(found) == ["mine", "salun_core.one", "salun_core.two"]


def test_packages_of_another_environment_are_not_searched(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    folders = search_path()
    assert tmp_path / "mine" in folders
    assert tmp_path / "site-packages" not in folders


def digest_of(folder, content):
    (folder / "mine.py").write_bytes(content)
    forget_files()
    return code_digest("mine", folders=[folder])


def test_sources_are_read_as_python_reads_them(tmp_path):
    plain = digest_of(tmp_path, b'name = "\xc3\xa9"\n')
    assert digest_of(tmp_path, b'\xef\xbb\xbfname = "\xc3\xa9"\n') == plain  # a byte order mark
    assert digest_of(tmp_path, b'# -*- coding: latin-1 -*-\nname = "\xe9"\n') == plain
    assert digest_of(tmp_path, b'# -*- coding: latin-1 -*-\nname = "\xe8"\n') != plain
    long = b"total = " + b" + ".join([b"1"] * 600)
    assert digest_of(tmp_path, long) != digest_of(tmp_path, long + b" + 1")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'\nprint "old"\n', ", line 2"),
        (b'name = "\xe9"\n', ""),
        (b"# coding: none-such\n", ""),
        (b"a\0b", ""),
        (b"(" * 5000, ""),
    ],
)
def test_a_source_that_is_no_python_is_named_with_its_line(tmp_path, content, line):
    with pytest.raises(UserError, match=f"mine.py{line}.*: this is no Python 3") as caught:
        digest_of(tmp_path, content)
    assert "\n" not in str(caught.value)
