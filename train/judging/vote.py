r"""Folders of results -> a page that asks people which of two they prefer, without saying whose they are (paper, 4.4,
Table 6).

    python -m train.vote ours=results/ours origin=results/origin --photos photos --out runs/votes.jsonl
    python -m train.vote --out runs/votes.jsonl --results --csv votes.csv

The page shows a photo between the results of two methods. Which two, of which photo and on which side is drawn by lot,
each pair of methods equally often. One votes by button or key (left, right, down) and stops at will. A result has its
photo's name, whatever the ending. Of a voter only a random number is kept, in the file and in the browser. Each vote
is on the disk before the next question, and the same command goes on where the page was stopped. Counts are printed by
--results alone: a rate is of the votes that decide, its interval is Wilson's."""

import argparse
import os
import re
import secrets
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from preim3d.options import given_path, whole_number
from preim3d.photo import load_photo
from train.judging.votes import ANSWERS, Study, Vote, Votes, open_study, read_votes, table, write_csv
from train.loop.command import command_parser, run_command


QUESTION = "Which of the two shows the person of the photo better?"
PHOTO_PX = 768  # the photo's longer side on the page; results are shown as they are
BUTTONS = {"left": "← Left", "right": "Right →", "cannot tell": "↓ Cannot tell"}
NO_MORE = "That was all. Thank you!"
# Pictures that are still on their way must not be voted on by someone who is quick with the keys.
KEYS = """<script>
document.addEventListener("keydown", event => {
    const name = {ArrowLeft: "vote-left", ArrowRight: "vote-right", ArrowDown: "vote-cannot-tell"}[event.key];
    const button = name && document.getElementById(name);
    if (!button || event.repeat || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if ([...document.querySelectorAll("#left img, #right img")].every(picture => picture.complete)) button.click();
});
</script>"""
CSS = "#photo img, #left img, #right img {width: 100%; height: auto; object-fit: contain}"


def make_page(study: Study, votes: Votes):
    """The page as gradio.Blocks. It keeps nothing of a session: the browser holds the voter and which question it
    shows, so that a page that was started again takes the next vote as well."""
    import gradio as gr

    def ask(voter: str) -> list:
        """The first of the voter's questions without a vote, as the values of all `shown`."""
        if not re.fullmatch("[0-9a-f]{16}", str(voter)):
            voter = secrets.token_hex(8)
        trials, cast = study.trials(voter), votes.cast.get(voter, ())
        open_ = [number for number in range(len(trials)) if number not in cast]
        if not open_:
            return [voter, -1, NO_MORE, None, None, None, *(gr.Button(interactive=False) for _ in ANSWERS)]
        photo, left, right = trials[open_[0]]
        face = load_photo(study.photos[photo])
        face.thumbnail((PHOTO_PX, PHOTO_PX))
        # Pictures rather than files: an address with a name in it, or another format, would tell whose it is.
        pair = [load_photo(study.results[method][photo]) for method in (left, right)]
        progress = f"Question {len(cast) + 1} of {len(trials)}. Stop whenever you like; every vote counts."
        return [voter, open_[0], progress, face, *pair, *(gr.Button(interactive=True) for _ in ANSWERS)]

    def vote(answer: str, voter: str, number: int) -> list:
        trials = study.trials(voter)
        if 0 <= number < len(trials):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                votes.add(Vote(now, voter, number, *trials[number], answer))
            except OSError as error:
                raise gr.Error(f"The vote could not be kept. {error}", print_exception=False) from error
        return ask(voter)

    def picture(name: str) -> gr.Image:
        return gr.Image(
            format="png", show_label=False, interactive=False, buttons=["fullscreen"], elem_id=name, min_width=200
        )

    with gr.Blocks(title="Which is better?", delete_cache=(3600, 3600)) as page:
        # Nothing to hide: a fixed secret lets a page that was started again read it.
        voter = gr.BrowserState("", storage_key="preim3d-voter", secret="anonymous")
        number = gr.Number(-1, precision=0, visible="hidden")
        gr.Markdown(f"## {study.question}")
        progress = gr.Markdown(elem_id="progress")
        pictures, buttons = {}, {}
        with gr.Row():
            for name, answer, title in (
                ("left", "left", "Left"), ("photo", "cannot tell", "The photo"), ("right", "right", "Right")
            ):  # fmt: skip
                with gr.Column(scale=2 if name == "photo" else 3, min_width=200):
                    gr.Markdown(f"**{title}**")
                    pictures[name] = picture(name)
                    buttons[answer] = gr.Button(BUTTONS[answer], elem_id=f"vote-{answer.replace(' ', '-')}")
        shown = [voter, number, progress, *(pictures[name] for name in ("photo", "left", "right"))]
        shown += [buttons[answer] for answer in ANSWERS]
        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(ask, voter, shown, **hidden)
        for answer in ANSWERS:
            buttons[answer].click(partial(vote, answer), [voter, number], shown, **hidden)
    return page


def open_page(args: argparse.Namespace) -> None:
    folders = dict(args.results_of)
    if len(folders) < 2 or len(folders) < len(args.results_of):
        raise ValueError("Give two folders of results or more, each as NAME=FOLDER with a name of its own.")
    if args.photos is None:
        raise ValueError("Give the folder of the photos: --photos.")
    study = open_study(args.question, args.photos, folders, args.seed)
    votes = Votes(args.out, study.about())

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would call home as gradio is imported
    import gradio as gr

    try:
        make_page(study, votes).launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            # System fonts: the page fetches nothing from outside.
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            head=KEYS,
        )
    except OSError as error:
        where = f"port {args.port}" if args.port else "any port from 7860 on"
        raise OSError(f"The page cannot be opened on {where}: give another --port or --host.") from error


def tell_results(args: argparse.Namespace) -> None:
    told, votes = read_votes(args.out)
    if args.csv:
        write_csv(args.csv, votes)
    print(table(told, votes))


def named_folder(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if not (name.strip() and equals and folder):
        raise argparse.ArgumentTypeError(f"`{word}` is not of the form NAME=FOLDER; for example ours=results/ours")
    return name.strip(), Path(folder)


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.vote")
    parser.add_argument(
        "results_of", nargs="*", type=named_folder, metavar="NAME=FOLDER", help="a method and its pictures"
    )
    parser.add_argument("--photos", type=given_path, help="folder of the photos that the pictures were made of")
    parser.add_argument("--out", type=given_path, required=True, help="the file of votes; it only grows")
    parser.add_argument("--question", default=QUESTION, help="what is asked; default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of all that is drawn by lot but the voters")
    parser.add_argument("--host", help="default: 127.0.0.1, this machine only; 0.0.0.0 lets others in")
    parser.add_argument("--port", type=whole_number(1, 65535), help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="also open a public address at gradio.live")
    parser.add_argument("--results", action="store_true", help="print the counts, in place of the page")
    parser.add_argument("--csv", type=given_path, help="with --results: also write every vote into this file")
    args = parser.parse_args(words)
    if args.csv and not args.results:
        parser.error("--csv goes with --results")
    return run_command("train.vote", tell_results if args.results else open_page, args)
