"""What the reconstruction kept of the photo and what the edit did, in words and figures (paper, section 4.2)."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from preim3d.directions import Directions
from preim3d.edits import Plan
from preim3d.judge import Judge, Judgement
from preim3d.page.visitor import Visitor
from preim3d.weights import read_json


SPACES = {"inversion": "the inversion manifold", "origin": "the original space"}


@dataclass
class Verdict:
    """Says what a judging network sees."""

    judge: Judge
    directions: Directions  # for the words on the sliders
    same_person: float | None  # mean cosine of a photo and its reconstruction from the side, as evaluated
    other_person: float | None  # and of a photo and somebody else's

    @classmethod
    def of_weights(cls, reader: Path, weights: Path, directions: Directions) -> "Verdict":
        """With the folder of the judging network and the evaluation of the weights, if they have one."""
        evaluation = weights / "evaluation.json"
        measured = read_json(evaluation) if evaluation.is_file() else {}
        return cls(Judge(reader), directions, measured.get("id_20_30"), measured.get("id_other"))

    def describe(self, visitor: Visitor, after: Image.Image, before: Image.Image | None = None) -> str:
        """Markdown; `after` is the edited head and `before` the reconstruction, both from the photo's camera."""
        lines = []
        if visitor.crop is not None:
            cosine = self.judge.identity(visitor.crop, visitor.front)
            lines.append(f"**Likeness of the reconstruction to the photo: {cosine:.2f}**{self.alike(cosine)}.")
        plan = visitor.history.plan
        if before is not None and plan.strengths():
            judgement = self.judge.judge(before, after, plan.strengths())
            lines += self.about_edit(judgement)
            # With the same edits by the other directions, if they were looked at: this is the paper's comparison.
            other = "origin" if plan.space == "inversion" else "inversion"
            known = visitor.judged.get(plan._replace(space=other))
            if known is not None:
                lines.append(
                    f"The same edits with directions of {SPACES[other]}: identity kept {known.identity:.2f}, drift of"
                    f" the rest {known.dependency:.2f}; here, of {SPACES[plan.space]}: {judgement.identity:.2f} and"
                    f" {judgement.dependency:.2f}."
                )
                visitor.judged = {plan._replace(space=other): known, plan: judgement}
            else:
                visitor.judged = {plan: judgement}
        if lines:
            scale = "Cosine of a small network's embeddings, 1 = the same; changes in its standard deviations."
            lines.append(f"<small>{scale} It learned on synthetic people.</small>")
        return "\n\n".join(lines)

    def about_edit(self, judgement: Judgement) -> list[str]:
        words = dict(zip(self.directions.names, self.directions.config.labels))
        changed = ", ".join(f"{words[name].lower()} {value:+.1f}" for name, value in judgement.altering.items())
        drifts = ", ".join(f"{name} {value:+.1f}" for name, value in judgement.drifts.items())
        return [
            f"**Identity kept by the edit: {judgement.identity:.2f}**{self.alike(judgement.identity)}.",
            (f"**Altered (AA):** {changed}. " if changed else "")
            + f"**The rest drifts (AD)** by {judgement.dependency:.2f} on average, most of all {drifts}.",
        ]

    def alike(self, cosine: float) -> str:
        """What a cosine means, by what was measured of these weights."""
        if self.same_person is None or self.other_person is None:
            return ""
        if cosine >= self.same_person:
            return " – like two views of one person"
        return " – the same type" if cosine > (self.same_person + self.other_person) / 2 else " – rather someone else"


def unknown_here(plan: Plan, directions: Directions, labels: dict[str, str]) -> str:
    """A sentence about edits that these directions cannot do; none where they can do all."""
    names = [labels[name].lower() for name in plan.strengths() if name not in directions.names]
    return f"There is no direction of {SPACES[plan.space]} for {', '.join(names)}: left out." if names else ""
