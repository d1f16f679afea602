"""The sheet of photos, reconstructions and edits."""

from command_line import run
from PIL import Image

from train import showcase


def test_a_sheet_has_a_row_per_face_and_a_cell_per_edit(tiny_weights, portrait, tmp_path):
    out = tmp_path / "sheet.png"
    assert (
        run(
            showcase.main,
            portrait,
            "--weights",
            tiny_weights,
            "--out",
            out,
            "--edits",
            "smile=2",
            "age=-1",
            "--cell",
            64,
        )
        == 0
    )
    sheet = Image.open(out)
    assert sheet.width >= 5 * 64 and sheet.height < 2 * 64


def test_mistakes_are_one_sentence(tiny_weights, portrait, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    for edit, words in (("smile", "write NAME=STRENGTH"), ("smyle=1", "smile")):
        assert run(showcase.main, portrait, "--weights", tiny_weights, "--out", out, "--edits", edit) == 1
        assert words in capsys.readouterr().err
    assert run(showcase.main, tmp_path / "none.png", "--weights", tiny_weights, "--out", out) == 1
    assert not out.exists()
