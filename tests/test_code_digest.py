import pytest

from salun_core.code_digest import code_digest, forget_files, imported_files, search_path


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


@pytest.fixture
def after_edit(tmp_path, monkeypatch):
    """Write a user's files, and tell whether an edit of one of them changes the digest of a module."""
    path = tmp_path / "path"
    path.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.chdir(tmp_path / "work")

    def changes(module, files, edited):
        for name, text in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)
        forget_files()
        before = code_digest(module)
        forget_files()
        assert code_digest(module) == before
        (path / edited).write_text("EDITED = 1\n")
        forget_files()
        return code_digest(module) != before

    yield changes
    forget_files()


@pytest.mark.parametrize(
    "line",
    [
        'import importlib\nx = importlib.import_module("pack.blocks")',
        'import importlib as il\nx = il.import_module(name="pack.blocks")',
        'from importlib import import_module as im\nx = im(".blocks", package=__package__)',
        'import importlib\nx = [importlib.import_module(n) for n in ("pack.blocks", "json")]',
        'x = __import__("pack.blocks").blocks',
        'from pkgutil import resolve_name\nx = resolve_name("pack.blocks:block")',
    ],
)
def test_modules_that_are_named_and_imported_at_run_time_count(after_edit, line):
    files = {"pack/__init__.py": "", "pack/net.py": line, "pack/blocks.py": "block = 1\n"}
    assert after_edit("pack.net", files, "pack/blocks.py")


def test_a_text_that_happens_to_name_a_module_does_not_count_without_such_an_import(after_edit):
    assert not after_edit("net", {"net.py": 'x = "blocks"', "blocks.py": ""}, "blocks.py")


@pytest.mark.parametrize(
    ("line", "table"),
    [
        ('open(HERE / "table.json")', "pack/table.json"),
        ('open(HERE / "no ending")', "pack/no ending"),
        ('open(HERE / "tables" / "wide" / "a b.csv")', "pack/tables/wide/a b.csv"),
        ('open(os.path.join(HERE, "tables", "x.json"))', "pack/tables/x.json"),
        ('open(HERE.parent / "data/x.json")', "data/x.json"),
        ('open(HERE / "../data/x.json")', "data/x.json"),
        ('open(Path(__file__).with_suffix(".yaml"))', "pack/net.yaml"),
        ('open("beside.json")', "../work/beside.json"),
    ],
)
def test_files_that_a_users_module_names_count(after_edit, line, table):
    files = {"pack/__init__.py": "", "pack/net.py": line, table: "{}"}
    assert after_edit("pack.net", files, table)


def test_files_that_are_not_named_do_not_count(after_edit):
    assert not after_edit("net", {"net.py": 'open("one.json")', "other.json": "{}"}, "other.json")


def test_a_file_named_by_its_whole_path_counts_and_what_the_system_shows_does_not(after_edit, tmp_path):
    table = tmp_path / "table.json"
    files = {"net.py": f"open({str(table)!r})\nopen('/proc/uptime')\nopen('/dev/zero')", str(table): "{}"}
    assert after_edit("net", files, str(table))


@pytest.mark.parametrize(
    "content", ["x = 'é'".encode("utf-8-sig"), "# coding: latin-1\nx = 'é'".encode("latin-1"), b"print 'old'"]
)
def test_sources_of_any_encoding_and_of_another_python_are_read(tmp_path, monkeypatch, content):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = set()
    for more in (b"", b"\ny = 1"):
        (tmp_path / "odd_source.py").write_bytes(content + more)
        forget_files()
        found.add(code_digest("odd_source"))
    forget_files()
    assert len(found) == 2


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
    "content",
    [b'\nprint "old"\n', b'name = "\xe9"\n', b"# coding: none-such\n", b"a\0b", b"(" * 5000],
)
def test_a_source_that_is_no_python_counts_by_its_bytes(tmp_path, content):
    assert digest_of(tmp_path, content) != digest_of(tmp_path, content + b"x")
