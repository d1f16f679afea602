"""Pairwise votes: what is asked, what is kept of them, what they add up to, and the page."""

import csv
import io
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from browsing import chromium, visiting
from conftest import nearly_full_disk
from PIL import Image
from running import ROOT, running_page

from train.judging.vote import main
from train.judging.votes import Study, Vote, Votes, open_study, read_votes, table, tally


ABOUT = {"question": "Which?", "methods": ["ours", "theirs"], "seed": 0, "pictures": "0123"}


def a_vote(
    number: int = 0, answer: str = "left", voter: str = "ann", left: str = "ours", right: str = "theirs"
) -> Vote:
    return Vote("2026-01-01T00:00:00+00:00", voter, number, "photo", left, right, answer)


def study_of(photos: int, methods: int) -> Study:
    names = {f"photo {number}": Path() for number in range(photos)}
    return Study("Which?", names, {f"method {number}": names for number in range(methods)}, seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Four photos; method `red`'s results are PNG and red, `blue`'s JPEG, smaller and blue."""
    folder = tmp_path_factory.mktemp("study")
    for name, colour, side, suffix in (
        ("photos", "white", 80, "jpg"), ("red", "red", 96, "png"), ("blue", "blue", 64, "jpg")
    ):  # fmt: skip
        (folder / name).mkdir()
        for number in range(4):
            Image.new("RGB", (side, side), colour).save(folder / name / f"p{number}.{suffix}")
    return folder


def test_pairs_of_methods_are_shown_equally_often_wherever_one_stops():
    trials = study_of(photos=7, methods=4).trials("ann")
    assert len(trials) == len(set(trials)) == 7 * 6
    for end in range(6, len(trials) + 1):
        counts = Counter(frozenset(trial[1:]) for trial in trials[:end])
        assert len(counts) == 6 and max(counts.values()) - min(counts.values()) <= 1
    for pair in {frozenset(trial[1:]) for trial in trials}:
        of_pair = [trial for trial in trials if set(trial[1:]) == pair]
        assert len({trial.photo for trial in of_pair}) == 7
        assert sorted(Counter(trial.left for trial in of_pair).values()) == [3, 4]


def test_order_and_sides_depend_on_seed_and_voter_alone():
    study = study_of(photos=20, methods=2)
    assert study.trials("ann") == study_of(photos=20, methods=2).trials("ann") != study.trials("bob")
    # Which side the odd one out stands on is drawn by lot, too: over many voters the sides are even.
    lefts = [study_of(photos=1, methods=2).trials(f"voter {number}")[0].left for number in range(400)]
    assert 150 < lefts.count("method 0") < 250


def test_votes_go_on_where_they_were_stopped(tmp_path):
    path = tmp_path / "runs" / "votes.jsonl"
    votes = Votes(path, ABOUT)
    votes.add(a_vote(0))
    votes.add(a_vote(0, "right"))  # a second click on the same question
    votes.add(a_vote(0, "right", voter="bob"))
    votes.file.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"time": "2026-01-01T00:00:00+00:00", "vot')  # killed within a line
    assert read_votes(path)[1] == [a_vote(0), a_vote(0, "right", voter="bob")]
    votes = Votes(path, ABOUT)
    assert path.read_bytes() == whole and votes.cast == {"ann": {0}, "bob": {0}}
    votes.add(a_vote(1))
    assert path.read_bytes().startswith(whole) and len(read_votes(path)[1]) == 3
    votes.file.close()
    path.write_bytes(b'{"question": "Whi')  # killed within the first line
    Votes(path, ABOUT).file.close()
    assert read_votes(path) == (ABOUT, [])


def test_a_kill_loses_no_vote(tmp_path):
    path = tmp_path / "votes.jsonl"
    script = f"""
from pathlib import Path
from train.judging.votes import Vote, Votes
votes = Votes(Path({str(path)!r}), {ABOUT})
for number in range(10**9):
    votes.add(Vote(*{a_vote()[:2]}, number, *{a_vote()[3:]}))
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    for _ in range(20):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    told = 20 + len(process.stdout.read().splitlines())
    assert process.wait() == -signal.SIGKILL
    votes = Votes(path, ABOUT)  # the dead process holds it no longer
    assert votes.cast["ann"] >= set(range(told)) and len(votes.cast["ann"]) <= told + 1


def test_a_full_disk_loses_one_vote_and_says_so(tmp_path):
    path = tmp_path / "votes.jsonl"
    votes = Votes(path, ABOUT)
    with nearly_full_disk(), pytest.raises(OSError, match="make room on its disk"):
        for number in range(1000):
            votes.add(a_vote(number))
    assert path.read_bytes().endswith(b"}\n") and votes.cast["ann"] == set(range(number))
    votes.add(a_vote(number))  # once there is room
    assert len(read_votes(path)[1]) == number + 1


def test_a_file_of_other_votes_is_left_alone(tmp_path):
    path = tmp_path / "votes.jsonl"
    votes = Votes(path, ABOUT)
    with pytest.raises(ValueError, match="Another page takes votes into"):
        Votes(path, ABOUT)
    votes.file.close()
    with pytest.raises(ValueError, match="methods: ours, theirs; now: ours, best"):
        Votes(path, ABOUT | {"methods": ["ours", "best"]})
    for words in ("no votes\n", "no votes", '{"a": 1}\n', "[1]\n", "null\n", json.dumps(ABOUT) + '\n{"a": 1}\n'):
        path.write_text(words)
        with pytest.raises(ValueError, match="is no file of votes"):
            Votes(path, ABOUT)
        assert path.read_text() == words


def test_votes_are_counted_with_wilsons_interval():
    votes = [a_vote(number) for number in range(5)]
    votes += [a_vote(number, "right", left="theirs", right="ours") for number in range(3)]
    votes += [
        a_vote(9, "right", voter="bob"),
        a_vote(10, "left", left="theirs", right="ours"),
        a_vote(8, "cannot tell"),
    ]
    (pair,) = tally(["ours", "theirs"], votes)
    assert pair == ("ours", "theirs", 8, 2, 1)
    z, n, share = 1.959964, 10, 0.8  # Wilson 1927
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert np.allclose(pair.rate(), [share, *((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))])
    text = table(ABOUT, votes)
    assert "Votes: 11, voters: 2." in text and "| ours > theirs | 8 | 2 | 1 | 0.80 | 0.49 to 0.94 |" in text
    assert "| ours > theirs | 0 | 0 | 1 | - | - |" in table(ABOUT, votes[-1:])


def test_pictures_that_change_are_another_study(folders, tmp_path):
    named = {name: folders / name for name in ("red", "blue")}
    study = open_study("Which?", folders / "photos", named, 0)
    assert list(study.photos) == ["p0", "p1", "p2", "p3"] and study.results["red"]["p1"].name == "p1.png"
    (tmp_path / "blue").mkdir()
    for path in (folders / "blue").iterdir():
        Image.new("RGB", (64, 64), "black").save(tmp_path / "blue" / path.name)
    other = open_study("Which?", folders / "photos", named | {"blue": tmp_path / "blue"}, 0)
    assert study.about() | {"pictures": 0} == other.about() | {"pictures": 0} != study.about() != other.about()


def mistakes(folder: Path, spoilt: Path):
    spoilt.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64)).save(spoilt / f"p{number}.png")
    (spoilt / "p2.png").write_bytes((spoilt / "p2.png").read_bytes()[:60])
    red, blue, photos = (folder / name for name in ("red", "blue", "photos"))
    few = spoilt.parent / "few"
    few.mkdir()
    Image.new("RGB", (64, 64)).save(few / "p0.png")
    return [
        ([f"red={red}", "--photos", photos], "Give two folders of results or more"),
        ([f"red={red}", f"red={blue}", "--photos", photos], "each as NAME=FOLDER with a name of its own"),
        ([f"red={red}", f"blue={blue}"], "Give the folder of the photos: --photos."),
        ([f"red={red}", "blue=nowhere", "--photos", photos], "nowhere is no folder"),
        ([f"red={red}", f"few={few}", "--photos", photos], "no picture for 3 of the 4 photos, such as p1"),
        ([f"red={red}", f"bad={spoilt}", "--photos", photos], "p2.png cannot be shown: The picture is damaged"),
        (["--results"], "There are no votes in"),
    ]


def test_a_mistake_is_told_in_one_sentence(folders, tmp_path, capsys):
    for words, sentence in mistakes(folders, tmp_path / "spoilt"):
        assert main([*map(str, words), "--out", str(tmp_path / "votes.jsonl")]) == 1
        told = capsys.readouterr().err
        assert sentence in told and told.startswith("train.vote: ") and told.count("\n") == 1
    assert not (tmp_path / "votes.jsonl").exists()
    for words in (["red", "--out", "votes.jsonl"], ["--csv", "votes.csv", "--out", "votes.jsonl"]):
        with pytest.raises(SystemExit):
            main(words)
    assert "NAME=FOLDER" in capsys.readouterr().err


LOADED = "(p => p.length == 3 && p.every(i => i.complete))([...document.querySelectorAll('.image-frame img')])"


def colour_of(page, name: str) -> str:
    address = page.locator(f"#{name} img").get_attribute("src")
    assert address.endswith("/image.png")  # neither name nor format tells the method
    red, _, blue = Image.open(io.BytesIO(page.request.get(address).body())).getpixel((0, 0))
    return "red" if red > blue else "blue"


def test_a_person_votes_by_key_and_button(folders, tmp_path, capsys):
    out = tmp_path / "votes.jsonl"
    words = (f"red={folders / 'red'}", f"blue={folders / 'blue'}", "--photos", folders / "photos", "--out", out)
    with running_page(tmp_path, *words, program=("-m", "train.vote")) as server, chromium() as browser:
        with visiting(browser, server.address) as page:
            page.get_by_text("Question 1 of 4.").wait_for()
            assert "blue" not in page.request.get(f"{server.address}/config").text()
            seen = []
            for number, vote in enumerate(("ArrowLeft", "ArrowRight", "#vote-left", "ArrowDown"), 1):
                page.wait_for_function(LOADED)  # keys count only then
                seen.append(tuple(colour_of(page, name) for name in ("left", "right")))
                page.click(vote) if vote.startswith("#") else page.keyboard.press(vote)
                page.get_by_text(f"Question {number + 1} of 4." if number < 4 else "That was all.").wait_for()
                if number == 2:
                    page.reload()  # the same voter goes on
                    page.get_by_text("Question 3 of 4.").wait_for()
    votes = read_votes(out)[1]
    assert [(vote.left, vote.right) for vote in votes] == seen and len({vote.voter for vote in votes}) == 1
    assert [vote.answer for vote in votes] == ["left", "right", "left", "cannot tell"]
    assert sorted(vote.photo for vote in votes) == ["p0", "p1", "p2", "p3"]

    assert main(["--out", str(out), "--results", "--csv", str(tmp_path / "votes.csv")]) == 0
    preferred = [side[0] if vote.answer == "left" else side[1] for side, vote in zip(seen[:3], votes)]
    counted = f"| red > blue | {preferred.count('red')} | {preferred.count('blue')} | 1 |"
    assert counted in capsys.readouterr().out
    with (tmp_path / "votes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Vote(**row | {"number": int(row["number"])}) for row in rows] == votes
