"""What the reconstruction kept of the photo and what the edit did: in words for everybody, in figures for researchers
(paper, section 4.2)."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from preim3d.directions import Directions
from preim3d.edits import Plan
from preim3d.judge import SCALE, IdentityJudge, Judge, Judgement
from preim3d.page.visitor import Visitor
from preim3d.weights import knows_people


SPACES = {"inversion": "the inversion manifold", "origin": "the original space"}
# Standard deviations of a change, and how it is called: small, medium and large effects of Cohen (1988, section 2.2).
SMALL, MEDIUM, LARGE = 0.2, 0.5, 0.8


@dataclass
class Verdict:
    """Says what the judging networks see; each of them may be missing, and then is silent."""

    identity: IdentityJudge | None
    judge: Judge | None
    directions: Directions  # for the words on the sliders

    @classmethod
    def of_weights(cls, reader: Path, weights: Path, directions: Directions) -> "Verdict":
        """With the folder of the attribute reader, and the identity network of the weights or the bundled one: both
        know people only."""
        identity = IdentityJudge.of_weights(weights)
        judge = Judge(reader, identity) if knows_people(weights) and (reader / "config.json").is_file() else None
        return cls(identity, judge, directions)

    def describe(self, visitor: Visitor, after: Image.Image, before: Image.Image | None = None) -> tuple[str, str]:
        """Words and figures, both Markdown; `after` is the edited head and `before` the reconstruction, both from the
        photo's camera."""
        words, figures = [], []
        if self.identity is not None and visitor.crop is not None:
            likeness = self.identity.likeness(visitor.crop, visitor.front)
            words.append(f"**Photo and head: {likeness.words}.**")
            figures.append(f"Photo and reconstruction: distance {likeness.distance:.2f}.")
        plan = visitor.history.plan
        if self.judge is not None and before is not None and plan.strengths():
            judgement = self.judge.judge(before, after, plan.strengths())
            words.append(self.in_words(judgement))
            figures += self.about_edit(judgement)
            # With the same edits by the other directions, if they were looked at: this is the paper's comparison.
            other = "origin" if plan.space == "inversion" else "inversion"
            known = visitor.judged.get(plan._replace(space=other))
            if known is not None:
                figures.append(
                    f"The same edits with directions of {SPACES[other]}: {in_figures(known)}; here, of"
                    f" {SPACES[plan.space]}: {in_figures(judgement)}."
                )
                visitor.judged = {plan._replace(space=other): known, plan: judgement}
            else:
                visitor.judged = {plan: judgement}
        if figures and self.identity is not None:
            figures.append(f"Distances are those of dlib's face network: {SCALE}.")
        return "\n\n".join(words), "\n\n".join(figures)

    def in_words(self, judgement: Judgement) -> str:
        """What an edit did, without figures; Markdown."""
        labels = self.labels()
        asked = "; ".join(f"{labels[name]}: {change_in_words(value)}" for name, value in judgement.altering.items())
        others = [
            f"{name} ({'more' if value > 0 else 'less'})"
            for name, value in judgement.drifts.items()
            if abs(value) >= MEDIUM
        ]
        kept = f"**{judgement.kept.words}.** " if judgement.kept else ""
        also = f"Also changed: {', '.join(others)}." if others else "Nothing else changed much."
        return f"{kept}{asked}{'.' if asked else ''}\n\n{also}".strip()

    def about_edit(self, judgement: Judgement) -> list[str]:
        labels = self.labels()
        changed = ", ".join(f"{labels[name].lower()} {value:+.1f}" for name, value in judgement.altering.items())
        drifts = ", ".join(f"{name} {value:+.1f}" for name, value in judgement.drifts.items())
        kept = judgement.kept
        return [
            *([f"Before and after the edit: distance {kept.distance:.2f}."] if kept else []),
            (f"**Altered (AA):** {changed}. " if changed else "")
            + f"**The rest drifts (AD)** by {judgement.dependency:.2f} on average, most of all {drifts}, in standard"
            " deviations.",
        ]

    def labels(self) -> dict[str, str]:
        return dict(zip(self.directions.names, self.directions.config.labels))


def change_in_words(change: float) -> str:
    """A change in standard deviations -> words."""
    size, way = abs(change), "more" if change > 0 else "less"
    if size < SMALL:
        return "hardly any change"
    return f"a little {way}" if size < MEDIUM else f"clearly {way}" if size < LARGE else f"much {way}"


def in_figures(judgement: Judgement) -> str:
    distance = f"distance {judgement.kept.distance:.2f}, " if judgement.kept else ""
    return f"{distance}drift of the rest {judgement.dependency:.2f}"


def unknown_here(plan: Plan, directions: Directions, labels: dict[str, str]) -> str:
    """A sentence about edits that these directions cannot do; none where they can do all."""
    names = [labels[name].lower() for name in plan.strengths() if name not in directions.names]
    return f"**Left out:** {', '.join(names)}. The directions chosen for researchers cannot do that." if names else ""
