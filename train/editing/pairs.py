"""Rendered heads with and without something -> the offset of w that puts it there.

    python -m train.pairs --source heads_source.npz --weights weights/faces --out pairs.npz

For what photos have no labels for: one synthetic person twice, everything else equal (light, camera, background), both
through the encoder; the mean offset over many adults, of several kinds of the thing, is the direction, and works on
photos of real people. Makes OUT with names [K], as in `preim3d.directions`, offsets [K, num_ws, w_dim], agreement [K]
(mean cosine of the single offsets with their mean), counts [K] and the encoder's fingerprint. Killed, it goes on with
the next name when it is run again."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import camera_from_angles
from preim3d.directions import fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.pipeline import load_component
from train.heads.geometry import HeadBuilder
from train.heads.renderer import RenderedHead
from train.heads.sampler import DETAILS, HAIR_STYLES, SKIN_TONES, Z_DIM, Person, sample_person
from train.heads.source import HeadSource
from train.loop.options import run_stage, stage_parser


ADULT_YEARS = 18
YAW_STD, PITCH_STD = 0.15, 0.1  # radians
SHORT, LONG = ("short01", "short02", "short03", "short04"), ("long01", "bob01", "bob02", "braid01")
# sRGB, light and dark of each kind.
HAIR_COLOURS = {
    "black": ([0.07, 0.06, 0.06], [0.14, 0.12, 0.11]),
    "brown": ([0.27, 0.17, 0.11], [0.45, 0.30, 0.19]),
    "blond": ([0.72, 0.56, 0.34], [0.90, 0.78, 0.56]),
    "grey": ([0.55, 0.54, 0.53], [0.78, 0.77, 0.76]),
}
LIPSTICKS = ([0.70, 0.10, 0.16], [0.62, 0.07, 0.14])
Draw = np.random.Generator
Change = Callable[[Person, Draw], tuple[Person, Person]]  # the person without and with


class Pair(NamedTuple):
    """What is changed, and on whom."""

    change: Change
    suits: Callable[[Person], bool] = lambda person: True


def fields(without: dict, with_: dict) -> Change:
    """A pair that differs in these fields; a value may be a function of the draw."""

    def settled(values: dict, rng: Draw) -> dict:
        return {name: value(rng) if callable(value) else value for name, value in values.items()}

    return lambda person, rng: (
        dataclasses.replace(person, **settled(without, rng)),
        dataclasses.replace(person, **settled(with_, rng)),
    )


def glasses(dark: float) -> Change:
    """Frames of all colours, sizes and widths, with clear or dark lenses."""
    return fields(
        {},
        {
            "glasses": 1.0,
            "sunglasses": dark,
            "frame_color": lambda rng: np.full(3, 0.04) + rng.random() * np.array([0.4, 0.28, 0.16]),
            "frame_radius": lambda rng: rng.uniform(0.013, 0.026),
            "frame_width": lambda rng: rng.uniform(0.85, 1.15),
        },
    )


def beard(stubble: float, moustache: float, goatee: float, full: float) -> Pair:
    """Of about that thickness, on men who have none."""
    amounts = np.array([stubble, moustache, goatee, full])
    change = fields({"beard": np.zeros(4)}, {"beard": lambda rng: np.clip(amounts * rng.uniform(0.85, 1.15), 0, 0.95)})
    return Pair(change, lambda person: person.male > 0.6 and person.years > 21)


def hair_colour(name: str) -> Pair:
    """Hair of one colour against hair of the others."""
    others = [other for other in HAIR_COLOURS if other != name]

    def colour(kind: str, rng: Draw) -> dict:
        dark, light = map(np.array, HAIR_COLOURS[kind])
        return {"hair": dark + rng.random() * (light - dark), "grey": float(kind == "grey")}

    def change(person: Person, rng: Draw) -> tuple[Person, Person]:
        other = others[rng.integers(len(others))]
        return dataclasses.replace(person, **colour(other, rng)), dataclasses.replace(person, **colour(name, rng))

    return Pair(change, lambda person: person.hair_name not in ("bald", "buzz"))


def hair_style(without: tuple[str, ...], with_: tuple[str, ...]) -> Change:
    def one_of(names: tuple[str, ...]):
        return lambda rng: HAIR_STYLES.index(names[rng.integers(len(names))])

    return fields({"hair_style": one_of(without)}, {"hair_style": one_of(with_)})


def details(amount: float, *targets: str) -> Change:
    """The person with details of -amount, and of +amount; targets by their name towards plus."""
    places = [[plus for _, plus, _ in DETAILS].index(target) for target in targets]

    def change(person: Person, rng: Draw) -> tuple[Person, Person]:
        less, more = person.details.copy(), person.details.copy()
        less[places], more[places] = -amount, amount
        return dataclasses.replace(person, details=less), dataclasses.replace(person, details=more)

    return change


def paler(person: Person, rng: Draw) -> tuple[Person, Person]:
    """Two tones apart on the ramp of skins; lips, unless painted, go with the skin."""

    def toned(tone: float) -> Person:
        tone = float(np.clip(tone, 0, 0.98))
        place = tone * (len(SKIN_TONES) - 1)
        low = min(int(place), len(SKIN_TONES) - 2)
        skin = SKIN_TONES[low] + (place - low) * (SKIN_TONES[low + 1] - SKIN_TONES[low])
        return dataclasses.replace(person, skin=skin, skin_tone=tone, lip=person.lip * skin / person.skin)

    return toned(person.skin_tone + 0.12), toned(person.skin_tone - 0.12)


def painted(person: Person, rng: Draw) -> tuple[Person, Person]:
    """Lips with lipstick and without."""
    bare = person.skin * [0.9, 0.7, 0.68]
    return (
        dataclasses.replace(person, lipstick=0.0, lip=bare),
        dataclasses.replace(person, lipstick=0.9, lip=np.array(LIPSTICKS[rng.integers(len(LIPSTICKS))])),
    )


def made_up(person: Person, rng: Draw) -> tuple[Person, Person]:
    """Eyes, lips and cheeks with make-up and without."""
    bare, lips = painted(person, rng)
    shadow = np.array([0.35, 0.22, 0.20]) + rng.random() * np.array([0.1, 0.1, 0.3])
    return (
        dataclasses.replace(bare, makeup=0.0, rosy=0.1),
        dataclasses.replace(lips, makeup=0.6, rosy=0.8, eyeshadow=shadow),
    )


def has_hair(person: Person) -> bool:
    return person.hair_name != "bald"


PAIRS = {
    "eyeglasses": Pair(glasses(0.0)),
    "sunglasses": Pair(glasses(1.0)),
    "hat": Pair(fields({}, {"hat": True, "hat_color": lambda rng: rng.uniform(0.05, 0.85, 3)})),
    "full_beard": beard(0.5, 0.8, 0.8, 0.85),
    "goatee": beard(0.2, 0.75, 0.85, 0.0),
    "moustache": beard(0.1, 0.9, 0.0, 0.0),
    "stubble": beard(0.65, 0.0, 0.0, 0.0),
    "black_hair": hair_colour("black"),
    "brown_hair": hair_colour("brown"),
    "blond_hair": hair_colour("blond"),
    "grey_hair": hair_colour("grey"),
    "bald": Pair(hair_style(SHORT, ("bald",))),
    "long_hair": Pair(hair_style(SHORT, LONG)),
    "bangs": Pair(hair_style(("short02", "short04", "long01"), ("short03", "bob01", "bob02"))),
    "wavy_hair": Pair(hair_style(("short02", "short04", "long01"), ("afro01", "short01", "bob02"))),
    "receding_hairline": Pair(details(0.7, "forehead/forehead-scale-vert-incr"), has_hair),
    "lipstick": Pair(painted),
    "heavy_makeup": Pair(made_up),
    "rosy_cheeks": Pair(fields({"rosy": 0.0}, {"rosy": 1.0})),
    "freckles": Pair(fields({"freckles": 0.0}, {"freckles": 1.0}), lambda person: person.skin_tone < 0.5),
    "wrinkles": Pair(fields({"wrinkles": 0.0}, {"wrinkles": 1.0})),
    "bushy_eyebrows": Pair(
        fields({"brow_thickness": 0.038, "brow_density": 0.6}, {"brow_thickness": 0.078, "brow_density": 1.0})
    ),
    "chubby": Pair(fields({"chubby": -0.5}, {"chubby": 0.9})),
    "pointy_nose": Pair(details(0.7, "nose/nose-point-up", "nose/nose-width1-incr")),
    "big_lips": Pair(details(0.8, "mouth/mouth-upperlip-volume-incr", "mouth/mouth-lowerlip-volume-incr")),
    "high_cheekbones": Pair(details(0.8, "cheek/*-cheek-bones-incr")),
    "oval_face": Pair(details(0.8, "head/head-oval")),
    "arched_eyebrows": Pair(details(0.8, "eyebrows/eyebrows-angle-up")),
    "pale_skin": Pair(paler),
}  # fmt: skip


@torch.no_grad()
def offsets(
    pair: Pair, people: list[Person], builder: HeadBuilder, encoder: PortraitEncoder, rng: np.random.Generator
) -> Tensor:
    """How each of `people` moves in W+ [n, num_ws, w_dim] when it gets what the pair is about."""
    moved = []
    for person in people:
        person = dataclasses.replace(person, hat=False, glasses=0.0, sunglasses=0.0)
        camera = camera_from_angles(rng.normal(0, YAW_STD), rng.normal(0, PITCH_STD)).numpy()
        background = rng.uniform(0.2, 0.9, 3)
        both = pair.change(person, rng)
        views = [picture(one, builder, camera, background, encoder.config.input_size)[0] for one in both]
        without, with_ = encoder(torch.stack(views).to(encoder.device))
        moved.append((with_ - without).cpu())
    return torch.stack(moved)


def picture(
    person: Person, builder: HeadBuilder, camera: np.ndarray, background: np.ndarray, size: int
) -> tuple[Tensor, Tensor]:
    """[3, size, size] in [-1, 1], in the person's own light; and where it shows the person, [1, size, size] in
    [0, 1]."""
    rgba = torch.from_numpy(RenderedHead(person, builder).view(camera, size, person.light)[0].astype(np.float32) / 255)
    colour = rgba[..., :3] * rgba[..., 3:] + torch.from_numpy(background).float() * (1 - rgba[..., 3:])
    return (colour * 2 - 1).permute(2, 0, 1), rgba[None, ..., 3]


def draw_people(rng: np.random.Generator, count: int, suits: Callable[[Person], bool]) -> list[Person]:
    people = []
    while len(people) < count:
        person = sample_person(rng.standard_normal(Z_DIM))
        if person.years > ADULT_YEARS and suits(person):
            people.append(person)
    return people


def make(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.suffix != ".npz":
        raise ValueError(f"--out {out} must end in .npz.")
    encoder = load_component(PortraitEncoder, Path(args.weights) / "encoder", torch.float32).to(args.device)
    builder = HeadBuilder(HeadSource(args.source))
    about = {"network": fingerprint(encoder), "heads": args.heads, "seed": args.seed}
    done = begun(out, about)
    for number, (name, pair) in enumerate(tqdm(PAIRS.items(), desc="pairs", mininterval=5)):
        if name in done:
            continue
        rng = np.random.default_rng((args.seed, number))
        moved = offsets(pair, draw_people(rng, args.heads, pair.suits), builder, encoder, rng)
        mean = moved.mean(0)
        agreement = F.cosine_similarity(moved.flatten(1), mean.flatten()[None]).mean()
        done[name] = mean.numpy(), float(agreement)
        with whole_file(out) as partial:
            np.savez(
                partial,
                names=np.array(list(done)),
                offsets=np.stack([offset for offset, _ in done.values()]),
                agreement=np.array([agreement for _, agreement in done.values()]),
                **about,
            )
    for name, (offset, agreement) in done.items():
        print(f"{name}: agreement {agreement:.2f}, length {np.linalg.norm(offset):.2f}")


def begun(out: Path, about: dict) -> dict[str, tuple[np.ndarray, float]]:
    """What an earlier run made with the same encoder, by name; nothing where there is none.

    Raises ValueError where it was made of something else."""
    if not out.is_file():
        return {}
    stored = np.load(out)
    for name, value in about.items():
        if stored[name] != value:
            raise ValueError(f"{out} was begun with another {name}; delete it or give another --out.")
    return {
        str(name): (offset, float(agreement))
        for name, offset, agreement in zip(stored["names"], stored["offsets"], stored["agreement"])
    }


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.pairs")
    parser.add_argument("--source", required=True, help="heads_source.npz, made by `python -m train.heads build`")
    parser.add_argument("--weights", required=True, help="pipeline folder with encoder/")
    parser.add_argument("--out", required=True, help="the .npz to write")
    parser.add_argument("--heads", type=int, default=24, help="pairs for each attribute")
    return run_stage("train.pairs", make, parser.parse_args(words))
