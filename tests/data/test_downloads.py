import hashlib
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from salun_core.__main__ import main
from salun_core.data import downloads
from salun_core.data.downloads import DOWNLOADS, Download, File, fetch, how_to_get
from salun_core.errors import UserError

CONTENT = {"/weights.bin": b"weights" * 1000, "/config.json": b"{}", "/cut.bin": b"weights" * 999}
CONTENT |= {"/short.bin": b"weights", "/chunks.bin": b"7\r\nweights\r\n"}


@pytest.fixture(scope="module")
def server():
    """A web server on this machine that serves `CONTENT` and notes what it is asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = CONTENT.get(self.path)
            self.send_response(200 if content is not None else 404)
            if self.path == "/chunks.bin":  # and the next one never comes
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(content or b"") + 9 * (self.path == "/short.bin")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def digest(path):
    return hashlib.sha256(CONTENT[path]).hexdigest()


@pytest.fixture
def known(server, tmp_path, monkeypatch):
    """Two files to fetch; returns the folder they go to, and what the server was asked for."""
    address, asked = server
    asked.clear()
    files = tuple(
        File(path[1:], digest(path), (f"{address}{path}",)) for path in ("/weights.bin", "/config.json")
    )
    monkeypatch.setattr(
        downloads, "DOWNLOADS", {"both": Download("two files", lambda: tmp_path / "to", files)}
    )
    return tmp_path / "to", asked, files


def from_addresses(monkeypatch, files, *addresses):
    """Only the first file is known, at other addresses."""
    both = downloads.DOWNLOADS["both"]
    monkeypatch.setitem(
        downloads.DOWNLOADS, "both", replace(both, files=(replace(files[0], addresses=addresses),))
    )


def test_files_are_fetched_once_and_checked_ever_after(known):
    folder, asked, _ = known
    assert [(path.name, fetched) for path, fetched in fetch(progress=False)] == [
        ("weights.bin", True),
        ("config.json", True),
    ]
    assert (folder / "weights.bin").read_bytes() == CONTENT["/weights.bin"]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "weights.bin"]
    assert [fetched for _, fetched in fetch(["both"], progress=False)] == [False, False]
    assert len(asked) == 2
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(UserError, match=r"config\.json has SHA-256 [0-9a-f]{64} instead of .*: delete it"):
        list(fetch(progress=False))


def test_a_file_of_other_content_is_refused_and_leaves_nothing(known, server, monkeypatch):
    folder, _, files = known
    from_addresses(monkeypatch, files, f"{server[0]}/cut.bin")
    with pytest.raises(UserError, match="gives a file with SHA-256"):
        list(fetch(progress=False))
    from_addresses(monkeypatch, files, f"{server[0]}/none.bin", "http://127.0.0.1:1/weights.bin")
    with pytest.raises(
        UserError, match=r"Not Found.*; .*does not answer .*; copy it to .*weights\.bin yourself"
    ):
        list(fetch(progress=False))
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("name", "said"), [("short", "after 7 of 16 bytes"), ("chunks", "IncompleteRead")])
def test_a_connection_that_ends_in_the_middle_of_a_file_is_told_from_another_file(
    known, server, monkeypatch, name, said
):
    folder, _, files = known
    from_addresses(monkeypatch, files, f"{server[0]}/{name}.bin")
    with pytest.raises(UserError, match=rf"{name}\.bin broke off \({said}.*; copy it to "):
        list(fetch(progress=False))
    assert not list(folder.iterdir())


def test_the_next_address_serves_where_the_first_gives_another_file(known, server, monkeypatch):
    folder, _, files = known
    from_addresses(monkeypatch, files, f"{server[0]}/cut.bin", f"{server[0]}/weights.bin")
    assert [fetched for _, fetched in fetch(progress=False)] == [True]
    assert (folder / "weights.bin").read_bytes() == CONTENT["/weights.bin"]


def test_the_command_fetches_and_lists(known, capsys):
    folder, _, _ = known
    assert main(["fetch", "--list"]) == 0
    out = capsys.readouterr().out
    assert "missing" in out
    for file in downloads.DOWNLOADS["both"].files:  # for a machine without a network, all that it takes
        assert file.sha256 in out and file.addresses[0] in out
    assert main(["fetch", "both"]) == 0
    out = capsys.readouterr().out
    assert out.count("fetched, content as expected") == 2
    assert main(["fetch", "--list"]) == 0
    assert str(folder / "config.json") in (listed := capsys.readouterr().out) and "missing" not in listed
    assert main(["fetch", "bot"]) == 2
    assert "did you mean 'both'" in capsys.readouterr().err


def test_every_refusal_can_name_file_address_digest_and_command():
    for name, download in DOWNLOADS.items():
        sentence = how_to_get(name)
        file = download.files[0]
        for part in (f"salun_core fetch {name}", file.addresses[0], file.sha256, str(download.paths[0])):
            assert part in sentence
        for each in download.files:
            assert len(each.sha256) == 64 and all(a.startswith("https://") for a in each.addresses)
            assert Path(each.name).name == each.name


def test_names_of_weights_begin_with_their_digest():
    """As torch names them; it was checked against the files' names, not against the files."""
    for name in ("inception", "resnet50"):
        file = DOWNLOADS[name].files[0]
        assert Path(file.name).stem.rsplit("-", 1)[1] == file.sha256[:8]
