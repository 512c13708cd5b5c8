import pytest
from hypothesis import given
from hypothesis import strategies as st

from salun_core.errors import Diverged, UserError
from salun_core.experiments import EXPERIMENTS

pytestmark = pytest.mark.unit


@given(st.text(st.characters(), max_size=30))
def test_a_message_is_one_line_that_a_terminal_can_show(text: str) -> None:
    message = str(Diverged(f"a {text} z"))
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    message.encode("utf8")


def test_a_message_that_is_printable_stays_as_it_is() -> None:
    assert str(UserError("lr -1 is below 0: give é or 図")) == "lr -1 is below 0: give é or 図"


def test_lines_of_a_quoted_error_become_one() -> None:
    assert str(UserError("cannot load x: missing\n  a\n  b")) == "cannot load x: missing   a   b"


def test_a_name_of_an_entry_that_is_a_line_break_is_shown() -> None:
    with pytest.raises(UserError, match=r"preset\.'\\n' has an entry named 0: names of entries are text"):
        EXPERIMENTS["classification"].params.load({"preset": {"\n": {0: None}}})
