"""What a long computation keeps of itself until it is whole."""

import pytest
import torch

from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.runs.store import Key, Store


def made(calls, value):
    def make():
        calls.append(value)
        return {"a": torch.tensor([value]), "b": torch.arange(value)}

    return make


def test_a_second_run_takes_what_the_first_has_made(tmp_path):
    calls = []
    first = Pieces(tmp_path / "x", every=0)
    for name, value in (("one", 1), ("two", 2)):
        first(name, made(calls, value))
    second = Pieces(tmp_path / "x", every=0)
    found = [second(name, made(calls, value)) for name, value in (("one", 1), ("two", 2), ("three", 3))]
    assert calls == [1, 2, 3]
    assert [part["a"].item() for part in found] == [1, 2, 3] and found[1]["b"].tolist() == [0, 1]
    assert second.before > 0
    second.clear()
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


def test_nothing_is_written_where_all_is_done_at_once(tmp_path):
    calls = []
    quick = Pieces(tmp_path / "x", every=3600)
    quick("one", made(calls, 1))
    assert not (tmp_path / "x").exists()
    quick.clear()


def test_pieces_made_between_two_writes_are_written_together(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("salun_core.experiments.runs.pieces.time.monotonic", lambda: now[0])
    pieces = Pieces(tmp_path, every=30)
    for value in range(1, 8):
        now[0] += 10
        pieces(f"piece {value}", made([], value))
    assert len(list(tmp_path.iterdir())) == 2  # after 30 and after 60 seconds
    calls = []
    again = Pieces(tmp_path, every=30)
    for value in range(1, 8):
        again(f"piece {value}", made(calls, value))
    assert calls == [7] and again.before == 60


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"no tensors",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),  # one bit of a number
    ],
    ids=["replaced", "cut", "changed in one bit"],
)
def test_a_damaged_piece_is_made_again(damage, tmp_path):
    Pieces(tmp_path, every=0)("one", made([], 1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    calls = []
    assert Pieces(tmp_path, every=0)("one", made(calls, 1))["a"].item() == 1 and calls == [1]


def test_batches_of_another_size_are_drawn_anew(tmp_path):
    rows = []

    def drawn(of):
        rows.append(of)
        return torch.zeros(len(of), 1)

    for size in (4, 6):
        kept = Pieces(tmp_path, every=0).images("drawing")
        for start in range(0, 12, size):
            of = range(start, start + size)
            kept(of, lambda of=of: drawn(of))
    assert rows == [range(0, 4), range(4, 8), range(8, 12), range(0, 6), range(6, 12)]


def test_pieces_of_other_code_or_computed_otherwise_are_left_alone(tmp_path):
    def folder(code, *, deterministic=False, **more):
        with Store(tmp_path, deterministic=deterministic).pieces(
            Key("samples", {"n": 1}, code), **more
        ) as pieces:
            return pieces.folder

    folders = {folder("a"), folder("b"), folder("a", deterministic=True), folder("a", batch=3)}
    assert len(folders) == 4 and folder("a") in folders


def test_pieces_of_older_code_go_when_the_whole_is_stored(tmp_path):
    def run(code, what):
        with Store(tmp_path).pieces(Key("samples", what, code)) as pieces:
            pieces.every = 0.0
            pieces("one", made([], 1))
            if code == "old":
                raise KeyboardInterrupt

    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run("old", {"n": number})
    run("new", {"n": 1})
    assert [path.name for path in (tmp_path / ".pieces").iterdir()] != []
    run("new", {"n": 2})
    assert not (tmp_path / ".pieces").exists()


def test_what_is_kept_stays_after_an_error(tmp_path):
    key = Key("samples", {"n": 1})

    def killed():
        with Store(tmp_path).pieces(key) as pieces:
            pieces.every = 0.0
            pieces("one", made([], 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with Store(tmp_path).pieces(key) as pieces:
        assert pieces("one", made([], 5))["a"].item() == 1
    assert not (tmp_path / ".pieces").exists()
