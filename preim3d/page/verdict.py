"""What the reconstruction kept of the photo and what the edit did, in words and figures (paper, section 4.2)."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from preim3d.directions import Directions
from preim3d.edits import Plan
from preim3d.judge import SCALE, IdentityJudge, Judge, Judgement
from preim3d.page.visitor import Visitor


SPACES = {"inversion": "the inversion manifold", "origin": "the original space"}


@dataclass
class Verdict:
    """Says what the judging networks see; each of them may be missing, and then is silent."""

    identity: IdentityJudge | None
    judge: Judge | None
    directions: Directions  # for the words on the sliders

    @classmethod
    def of_weights(cls, reader: Path, weights: Path, directions: Directions) -> "Verdict":
        """With the folder of the attribute reader, and the identity network of the weights or the bundled one."""
        identity = IdentityJudge.of_weights(weights)
        judge = Judge(reader, identity) if (reader / "config.json").is_file() else None
        return cls(identity, judge, directions)

    def describe(self, visitor: Visitor, after: Image.Image, before: Image.Image | None = None) -> str:
        """Markdown; `after` is the edited head and `before` the reconstruction, both from the photo's camera."""
        lines = []
        if self.identity is not None and visitor.crop is not None:
            likeness = self.identity.likeness(visitor.crop, visitor.front)
            lines.append(f"**Reconstruction and photo: {likeness.words}** (distance {likeness.distance:.2f}).")
        plan = visitor.history.plan
        if self.judge is not None and before is not None and plan.strengths():
            judgement = self.judge.judge(before, after, plan.strengths())
            lines += self.about_edit(judgement)
            # With the same edits by the other directions, if they were looked at: this is the paper's comparison.
            other = "origin" if plan.space == "inversion" else "inversion"
            known = visitor.judged.get(plan._replace(space=other))
            if known is not None:
                lines.append(
                    f"The same edits with directions of {SPACES[other]}: {in_figures(known)}; here, of"
                    f" {SPACES[plan.space]}: {in_figures(judgement)}."
                )
                visitor.judged = {plan._replace(space=other): known, plan: judgement}
            else:
                visitor.judged = {plan: judgement}
        if lines and self.identity is not None:
            lines.append(f"<small>Distances by dlib's face network: {SCALE}.</small>")
        return "\n\n".join(lines)

    def about_edit(self, judgement: Judgement) -> list[str]:
        labels = dict(zip(self.directions.names, self.directions.config.labels))
        changed = ", ".join(f"{labels[name].lower()} {value:+.1f}" for name, value in judgement.altering.items())
        drifts = ", ".join(f"{name} {value:+.1f}" for name, value in judgement.drifts.items())
        kept = judgement.kept
        return [
            *([f"**{kept.words}** (distance {kept.distance:.2f} between before and after)."] if kept else []),
            (f"**Altered (AA):** {changed}. " if changed else "")
            + f"**The rest drifts (AD)** by {judgement.dependency:.2f} on average, most of all {drifts}, in standard"
            " deviations.",
        ]


def in_figures(judgement: Judgement) -> str:
    distance = f"distance {judgement.kept.distance:.2f}, " if judgement.kept else ""
    return f"{distance}drift of the rest {judgement.dependency:.2f}"


def unknown_here(plan: Plan, directions: Directions, labels: dict[str, str]) -> str:
    """A sentence about edits that these directions cannot do; none where they can do all."""
    names = [labels[name].lower() for name in plan.strengths() if name not in directions.names]
    return f"There is no direction of {SPACES[plan.space]} for {', '.join(names)}: left out." if names else ""
