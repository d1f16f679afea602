"""The edits of one head as a list that can be changed, undone and done again; and what must not change with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from preim3d.directions import Directions
from preim3d.strengths import check_strengths


class Edit(NamedTuple):
    """One attribute, how far it is moved (standard deviations), and whether that is switched on."""

    name: str
    strength: float
    on: bool = True


class Plan(NamedTuple):
    """Everything that is done to w: at most one edit of each attribute, in order, the attributes to be kept, and whose
    directions are taken."""

    edits: tuple[Edit, ...] = ()
    protect: tuple[str, ...] = ()
    space: Literal["inversion", "origin"] = "inversion"

    def strengths(self) -> dict[str, float]:
        """Of the edits that are switched on."""
        return {edit.name: edit.strength for edit in self.edits if edit.on}

    def with_strengths(self, strengths: Mapping[str, float]) -> "Plan":
        """The plan that has these strengths: known edits stay in their place, 0 removes one, new ones come last."""
        edits = [Edit(e.name, strengths[e.name], e.on or strengths[e.name] != e.strength) if e.name in strengths else e
                 for e in self.edits]  # fmt: skip
        known = {edit.name for edit in self.edits}
        edits += [Edit(name, strength) for name, strength in strengths.items() if name not in known]
        return self._replace(edits=tuple(edit for edit in edits if edit.strength))

    def switched(self, name: str) -> "Plan":
        """The named edit switched off, or on again."""
        return self._replace(edits=tuple(e._replace(on=not e.on) if e.name == name else e for e in self.edits))

    def moved(self, name: str, places: int) -> "Plan":
        """The named edit later in the list by so many places, or earlier if negative."""
        names = [edit.name for edit in self.edits]
        edit = self.edits[names.index(name)]
        rest = [e for e in self.edits if e.name != name]
        rest.insert(max(0, names.index(name) + places), edit)
        return self._replace(edits=tuple(rest))


@dataclass
class History:
    """A plan and its former states; doing something new forgets what was undone."""

    plan: Plan = Plan()
    past: list[Plan] = field(default_factory=list)
    future: list[Plan] = field(default_factory=list)

    def do(self, plan: Plan) -> None:
        if plan != self.plan:
            self.past.append(self.plan)
            self.plan = plan
            self.future.clear()

    def undo(self) -> None:
        if self.past:
            self.future.append(self.plan)
            self.plan = self.past.pop()

    def redo(self) -> None:
        if self.future:
            self.past.append(self.plan)
            self.plan = self.future.pop()


def conditional(strengths: Mapping[str, float], protect: Iterable[str], directions: Directions) -> dict[str, float]:
    """Strengths that move w as the given ones do, but not along the protected directions.

    Conditional manipulation of InterFaceGAN (Shen et al. 2020, section 2.3), here for any number of conditions: the
    offset is projected onto the complement of the protected directions' span. What is taken away is itself a sum of
    these directions, so the result can be written as strengths again, and used wherever strengths are. An attribute
    that is edited is not protected.
    """
    kept: Sequence[str] = [name for name in protect if not strengths.get(name) and name in directions.names]
    moved = {name: float(strength) for name, strength in strengths.items() if strength}
    if not kept or not moved:
        return moved
    spanning = torch.stack([directions.vectors[directions.names.index(name)] for name in kept]).flatten(1).double()
    offset = directions.offset(moved).flatten().double()
    part = torch.linalg.lstsq(spanning.T.cpu(), offset[:, None].cpu()).solution[:, 0]
    return moved | {name: -amount for name, amount in zip(kept, part.tolist())}


def planned(plan: Plan, directions: Directions) -> dict[str, float]:
    """What a plan comes to with these directions, as strengths; attributes that they do not know are left out."""
    known = {name: strength for name, strength in plan.strengths().items() if name in directions.names}
    return conditional(known, plan.protect, directions)


def check_plan(plan: Plan, directions: Directions) -> dict[str, float]:
    """The same, after a check that every edit is possible, switched on or not, and so is what they come to.

    Raises:
        ValueError: one sentence: an impossible strength, an edit or a protection that is there twice, or protecting
            that takes more than is possible.
    """
    names = [edit.name for edit in plan.edits]
    for kind, listed in (("edited", names), ("protected", plan.protect)):
        if len(set(listed)) < len(listed):
            raise ValueError(f"`{max(listed, key=listed.count)}` is {kind} twice; once is enough.")
    check_strengths({edit.name: edit.strength for edit in plan.edits}, names)
    try:
        return check_strengths(planned(plan, directions), directions.names)
    except ValueError as error:
        raise ValueError(f"{error} Protecting takes more than that; protect less.") from None
