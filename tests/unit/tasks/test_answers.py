from __future__ import annotations

import pytest

from entropy_rft.tasks.answers import is_number, normalise_answer, number_text


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
        (r"\frac12", r"$\frac{1}{2}$"),
        (r"\dfrac{13}2 \sqrt3", r"$\dfrac{13}{2} \sqrt{3}$"),
        ("1 1/2", r"$\frac{3}{2}$"),
        ("-2 3/4", r"$-\frac{11}{4}$"),
        ("1\N{VULGAR FRACTION ONE HALF}", r"$\frac{3}{2}$"),
        ("\N{VULGAR FRACTION ONE HALF}", "$1/2$"),
        ("10 000", "10000"),
        ("1\N{NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567.5", "1234567.5"),
        ("10'000", "10000"),
        ("1.234,56", "1234.56"),
        ("1,00,000", "100000"),
        ("1.5", "1.5"),
        ("1.500", "1.500"),
        ("\N{EURO SIGN}42", "42"),
        ("42 \N{EURO SIGN}", "42"),
        ("\N{POUND SIGN}1,000.50", "1000.50"),
        (r"\[42\]", "42"),
        (r"\(\frac{1}{2}\)", r"$\frac{1}{2}$"),
        ("$$42$$", "42"),
        (r"\[\boxed{42}\]", "42"),
        ("1e-05", "0.00001"),
        ("2.5E3", "2500"),
        ("50%", r"$50\%$"),
    ],
)
def test_normalise(text, expected):
    assert normalise_answer(text) == expected
    assert normalise_answer(expected) == expected
    assert is_number(expected) == ("$" not in expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.00001, "0.00001"),
        (5.0, "5"),
        (-0.5, "-0.5"),
        (1e20, "1" + "0" * 20),
        (0.1, "0.1"),
        (100.0, "100"),
        (0.0, "0"),
    ],
)
def test_numbers_are_written_out(value, expected):
    assert number_text(value) == expected
