"""The shown head again without the page: lines of Python and of the shell."""

import shlex

from preim3d.page.visitor import Visitor


def python_and_command(visitor: Visitor, strengths: dict[str, float], weights: str | None) -> tuple[str, str]:
    """Lines that make the pictures of the visitor's edited head: from the photo, or from the recipe where the photo
    is not enough. `weights` is what --weights was."""
    strengths = {name: round(value, 4) for name, value in strengths.items()}
    folder = repr(weights) if weights else ""
    flag = f" --weights {shlex.quote(weights)}" if weights else ""
    space = visitor.history.plan.space
    if visitor.origin == "photo" and not visitor.improved and space == "inversion":
        which = f", face={visitor.face}" if visitor.face > 1 else ""
        python = f"""from preim3d import Preim3DPipeline

head = Preim3DPipeline.from_pretrained({folder})({visitor.photo_name!r}, {strengths}{which})
head.edited_views[4].save("front.png")"""
        words = "".join(f" --set {name}={value:g}" for name, value in strengths.items())
        words += f" --face {visitor.face}" if visitor.face > 1 else ""
        return python, f"python -m preim3d edit {shlex.quote(visitor.photo_name)}{words}{flag} --out out"
    which, origin = (', space="origin"', ", pipeline.origin_directions") if space == "origin" else ("", "")
    python = f"""from pathlib import Path

from preim3d import Preim3DPipeline
from preim3d.recipe import load_recipe

pipeline = Preim3DPipeline.from_pretrained({folder})
recipe = load_recipe(Path("head.recipe.json").read_bytes(), pipeline.directions{origin})
head = pipeline.head(recipe.w, recipe.tuning, {strengths}{which})
pipeline.views(head)[4].save("front.png")"""
    return python, f"python -m preim3d.recipe head.recipe.json{flag} --out out"
