"""Words of a command line and of the environment, and that the page refuses wrong ones in words."""

import runpy
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from preim3d.options import given_path, more_than_nothing, whole_number


ROOT = Path(__file__).resolve().parent.parent


def test_paths_and_numbers_are_read():
    assert given_path("photos/a b.jpg") == Path("photos/a b.jpg") and given_path(".") == Path()
    assert whole_number(1, 65535)("65535") == 65535 and whole_number(1)("1000000") == 1000000
    assert more_than_nothing("0.5") == 0.5 and more_than_nothing("30") == 30


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "abc", ""])
def test_nothing_is_no_budget(text):
    with pytest.raises(ArgumentTypeError, match=f"a number greater than 0, not '{text}'"):
        more_than_nothing(text)


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_path_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="no name is given; if you mean the current folder, write a dot"):
        given_path(text)


@pytest.mark.parametrize("text", ["0", "65536", "99999", "-1", "7860.5", "abc", ""])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(ArgumentTypeError, match=f"a whole number from 1 to 65535, not '{text}'"):
        whole_number(1, 65535)(text)


@pytest.mark.parametrize(
    "words, environment, sentence",
    [
        (["--port", "99999"], {}, "argument --port: it must be a whole number from 1 to 65535, not '99999'"),
        (["--queue-size", "0"], {}, "argument --queue-size: it must be a whole number from 1 up, not '0'"),
        ([], {"PREIM3D_QUEUE_SIZE": "many"}, "argument --queue-size: it must be a whole number from 1 up, not 'many'"),
        ([], {"PREIM3D_FORGET_S": "abc"}, "PREIM3D_FORGET_S: it must be a whole number from 1 up, not 'abc'"),
        ([], {"PREIM3D_FORGET_S": "0"}, "PREIM3D_FORGET_S: it must be a whole number from 1 up, not '0'"),
    ],
)
def test_the_page_says_what_is_wrong_with_its_options(monkeypatch, capsys, words, environment, sentence):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["app.py", *words])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    assert capsys.readouterr().err.strip().endswith(sentence)
