from salun_core.code_digest import imported_files, search_path


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
