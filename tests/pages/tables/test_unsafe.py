import pytest

from salun_core.pages.tables.unsafe import column_head


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("direct", "Direct"),
        ("prompts without its name", "Prompts\nwithout\nits name"),
        ("UnlearnDiffAtk", "Unlearn\nDiffAtk"),
        ("Ring-A-Bell", "Ring-A-\nBell"),
        ("P4D", "P4D"),
    ],
)
def test_a_long_head_breaks_where_a_reader_would(name, head):
    assert column_head(name) == head
