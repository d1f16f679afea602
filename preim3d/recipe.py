"""A head as a small file (latent, what its planes are tuned by, camera, edits, the weights' fingerprint) that restores
everything but the photo. 20 KB, or .6 MB where it is tuned.

    python -m preim3d.recipe head.recipe.json --out out

makes out/grid.png and out/head.glb of it again."""

import argparse
import base64
import json
import sys
from dataclasses import dataclass

import numpy as np

from preim3d.directions import Directions
from preim3d.edits import Edit, Plan, check_plan
from preim3d.files import whole_file
from preim3d.options import given_path
from preim3d.tuning import Tuning


VERSION = 2  # 1 knew no tuning, and no more than that
LARGEST_BYTES = 2_000_000  # many times the largest latent (18 x 512 numbers)


class RecipeError(ValueError):
    """The file is no recipe, or not one for these weights; the message is one sentence for the user."""


@dataclass
class Recipe:
    """What makes a head."""

    w: np.ndarray  # float32 [num_ws, w_dim], before the edits
    plan: Plan
    yaw_deg: float = 0.0  # of the photo's camera
    pitch_deg: float = 0.0
    tuning: Tuning | None = None

    def dumps(self, fingerprint: str) -> str:
        """The text of the file; `fingerprint` is that of the weights, see `directions.fingerprint`."""
        content = {
            "preim3d_recipe": VERSION,
            "weights": fingerprint,
            "camera": {"yaw_deg": self.yaw_deg, "pitch_deg": self.pitch_deg},
            "edits": [edit._asdict() for edit in self.plan.edits],
            "protect": list(self.plan.protect),
            "space": self.plan.space,
            "shape": list(self.w.shape),
            "w": base64.b64encode(self.w.astype("<f4").tobytes()).decode(),
        }
        if self.tuning is not None:
            content["tuning"] = base64.b64encode(self.tuning.to_bytes()).decode()
        return json.dumps(content, indent=2) + "\n"


def load_recipe(text: str | bytes, directions: Directions, origin_directions: Directions | None = None) -> Recipe:
    """The text of a file -> `Recipe`, checked against the directions of the weights that it is to be used with.

    Raises:
        RecipeError: it is no recipe, is damaged, asks for impossible edits, or was made with other weights.
    """
    if len(text) > LARGEST_BYTES:
        raise RecipeError(f"The file has {len(text) / 1e6:.1f} MB; a recipe has {LARGEST_BYTES / 1e6:g} MB at most.")
    try:
        # Some editors put a byte order mark before the text; of bytes, `loads` takes it away itself.
        content = json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
        version, made_with = content["preim3d_recipe"], content["weights"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RecipeError("The file is not a recipe: choose one that was downloaded here before.") from None
    if version not in range(1, VERSION + 1):
        raise RecipeError(f"The recipe is of version {version!r}, but this program reads versions 1 to {VERSION}.")
    config = directions.config
    if made_with != config.fingerprint:
        raise RecipeError(
            f"The recipe was made with weights {str(made_with)[:16]!r}, but these are {config.fingerprint!r};"
            " start from the photo again."
        )
    try:
        w = np.frombuffer(base64.b64decode(content["w"], validate=True), "<f4").reshape(content["shape"])
        edits = tuple(Edit(e["name"], float(e["strength"]), e["on"]) for e in content["edits"])
        protect = tuple(content["protect"])
        tuning = content.get("tuning")
        tuning = None if tuning is None else Tuning.from_bytes(base64.b64decode(tuning, validate=True))
        space = content.get("space", "inversion")  # recipes from before there was a choice do not say
        yaw, pitch = float(content["camera"]["yaw_deg"]), float(content["camera"]["pitch_deg"])
        whole = w.shape == (config.num_ws, config.w_dim) and np.isfinite(w).all() and abs(w).max() < 1e4
        whole &= abs(yaw) <= 90 and abs(pitch) <= 90  # neither is true of NaN
        whole &= space in ("inversion", "origin") and all(isinstance(edit.on, bool) for edit in edits)
        whole &= {*protect, *(edit.name for edit in edits)} <= set(directions.names)
    except (ValueError, KeyError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise RecipeError("The recipe is damaged: its latent or its edits cannot be read; use another copy.")
    plan, spaces = Plan(edits, protect, space), {"inversion": directions, "origin": origin_directions}
    if spaces[space] is None:
        raise RecipeError("The recipe's edits are of the original space, whose directions these weights lack.")
    try:
        check_plan(plan, spaces[space])
    except ValueError as error:
        raise RecipeError(f"The recipe cannot be used: {error}") from None
    return Recipe(w.astype(np.float32), plan, yaw, pitch, tuning)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m preim3d.recipe", description="A recipe -> its pose grid and mesh.")
    parser.add_argument("recipe", type=given_path, metavar="RECIPE")
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR", help="where grid.png and head.glb go")
    parser.add_argument("--weights", metavar="DIR", help="a folder in pipeline layout; default: the bundled one")
    options = parser.parse_args(arguments)

    from diffusers.utils import logging

    from preim3d.mesh import mesh_bytes
    from preim3d.pipeline import Preim3DPipeline, grid_sheet

    logging.disable_progress_bar()  # one for each network, over in a moment
    try:
        text = options.recipe.read_bytes()
        pipeline = Preim3DPipeline.from_pretrained(options.weights)
        recipe = load_recipe(text, pipeline.directions, pipeline.origin_directions)
        space = recipe.plan.space
        strengths = check_plan(recipe.plan, pipeline.directions_of(space))
        head = pipeline.head(recipe.w, recipe.tuning, strengths, space)
        grid, mesh = grid_sheet(pipeline.views(head)), pipeline.mesh(head)
        with whole_file(options.out / "grid.png") as file:
            grid.save(file)
        with whole_file(options.out / "head.glb") as file:
            file.write_bytes(mesh_bytes(mesh, "glb", {"strengths": strengths}))
    except (ValueError, OSError) as error:
        print(f"preim3d.recipe: {error}", file=sys.stderr)
        return 1
    print(f"Wrote grid.png and head.glb to {options.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
