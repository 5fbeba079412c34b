from __future__ import annotations

import pytest

from entropy_rft.tasks.answers import is_number, normalise_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234", "1234"),
        ("1,234,567", "1234567"),
        ("$18", "18"),
        (r"\$18", "18"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("$1,234.50", "1234.50"),
        (" 42 ", "42"),
        ("42.", "42"),
        ("+7", "7"),
        ("\N{MINUS SIGN}7", "-7"),
        ("$12$", "12"),
        (r"\boxed{34}", "34"),
        ("0.5", "0.5"),
        (".5", ".5"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        ("1,2", "$1,2$"),
        ("1234,567", "$1234,567$"),
        (r"\frac{1}{2}", r"$\frac{1}{2}$"),
        (r"$\frac{1}{2}$", r"$\frac{1}{2}$"),
        (r"\boxed{2\sqrt{3}}", r"$2\sqrt{3}$"),
        ("1/2", "$1/2$"),
    ],
)
def test_normalise(text, expected):
    assert normalise_answer(text) == expected
    assert normalise_answer(expected) == expected
    assert is_number(expected) == ("$" not in expected)
