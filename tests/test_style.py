"""The check of avoided phrases finds them."""

from tests.style import markers


def test_phrases_are_found_in_prose_docstrings_and_across_lines():
    text = 'x = 1  # each by itself\n"""What it does."""\n# parts of\n# their own\n"""Do it."""\n'
    assert [number for number, _ in markers(text)] == [1, 2, 3]
