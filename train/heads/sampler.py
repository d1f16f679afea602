"""z ~ N(0, I) -> Person: every parameter of a synthetic person, its features for the generator, its attribute labels.

The map is fixed and, but for the kinds of hair and hat, smooth: nearby z give nearby heads, which is what lets a
generator learn it. A new factor goes to the end of FACTORS: a stored z then keeps its meaning.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtr, softmax

from train.heads.source import ANCESTRIES


# (target towards minus, target towards plus, standard deviation); * stands for the left and the right one.
DETAILS = (
    ("forehead/forehead-nubian-decr", "forehead/forehead-nubian-incr", 0.28),
    ("forehead/forehead-scale-vert-decr", "forehead/forehead-scale-vert-incr", 0.28),
    ("forehead/forehead-temple-decr", "forehead/forehead-temple-incr", 0.28),
    ("forehead/forehead-trans-backward", "forehead/forehead-trans-forward", 0.28),
    ("head/head-scale-horiz-decr", "head/head-scale-horiz-incr", 0.2),
    ("head/head-scale-vert-decr", "head/head-scale-vert-incr", 0.2),
    ("head/head-scale-depth-decr", "head/head-scale-depth-incr", 0.2),
    ("head/head-angle-in", "head/head-angle-out", 0.12),
    ("head/head-square", "head/head-oval", 0.35),
    ("head/head-triangular", "head/head-invertedtriangular", 0.25),
    ("head/head-rectangular", "head/head-round", 0.25),
    ("", "head/head-diamond", 0.18),
    ("chin/chin-bones-decr", "chin/chin-bones-incr", 0.32),
    ("chin/chin-height-decr", "chin/chin-height-incr", 0.32),
    ("chin/chin-prominent-decr", "chin/chin-prominent-incr", 0.32),
    ("chin/chin-width-decr", "chin/chin-width-incr", 0.32),
    ("chin/chin-prognathism-decr", "chin/chin-prognathism-incr", 0.24),
    ("chin/chin-jaw-drop-decr", "chin/chin-jaw-drop-incr", 0.24),
    ("cheek/*-cheek-bones-decr", "cheek/*-cheek-bones-incr", 0.36),
    ("cheek/*-cheek-inner-decr", "cheek/*-cheek-inner-incr", 0.32),
    ("eyes/*-eye-scale-decr", "eyes/*-eye-scale-incr", 0.32),
    ("eyes/*-eye-trans-in", "eyes/*-eye-trans-out", 0.24),
    ("eyes/*-eye-corner1-down", "eyes/*-eye-corner1-up", 0.28),
    ("eyes/*-eye-corner2-down", "eyes/*-eye-corner2-up", 0.32),
    ("eyes/*-eye-height2-decr", "eyes/*-eye-height2-incr", 0.4),
    ("eyes/*-eye-bag-decr", "eyes/*-eye-bag-incr", 0.36),
    ("eyes/*-eye-eyefold-down", "eyes/*-eye-eyefold-up", 0.32),
    ("eyes/*-eye-push1-in", "eyes/*-eye-push1-out", 0.24),
    ("eyebrows/eyebrows-angle-down", "eyebrows/eyebrows-angle-up", 0.32),
    ("eyebrows/eyebrows-trans-backward", "eyebrows/eyebrows-trans-forward", 0.32),
    ("eyebrows/eyebrows-trans-down", "eyebrows/eyebrows-trans-up", 0.32),
    ("nose/nose-scale-vert-decr", "nose/nose-scale-vert-incr", 0.28),
    ("nose/nose-scale-horiz-decr", "nose/nose-scale-horiz-incr", 0.34),
    ("nose/nose-scale-depth-decr", "nose/nose-scale-depth-incr", 0.32),
    ("nose/nose-hump-decr", "nose/nose-hump-incr", 0.32),
    ("nose/nose-curve-concave", "nose/nose-curve-convex", 0.28),
    ("nose/nose-point-down", "nose/nose-point-up", 0.28),
    ("nose/nose-width1-decr", "nose/nose-width1-incr", 0.28),
    ("nose/nose-width2-decr", "nose/nose-width2-incr", 0.28),
    ("nose/nose-flaring-decr", "nose/nose-flaring-incr", 0.32),
    ("nose/nose-greek-decr", "nose/nose-greek-incr", 0.28),
    ("nose/nose-volume-decr", "nose/nose-volume-incr", 0.28),
    ("mouth/mouth-scale-horiz-decr", "mouth/mouth-scale-horiz-incr", 0.32),
    ("mouth/mouth-upperlip-volume-decr", "mouth/mouth-upperlip-volume-incr", 0.36),
    ("mouth/mouth-lowerlip-volume-decr", "mouth/mouth-lowerlip-volume-incr", 0.36),
    ("mouth/mouth-upperlip-height-decr", "mouth/mouth-upperlip-height-incr", 0.32),
    ("mouth/mouth-lowerlip-height-decr", "mouth/mouth-lowerlip-height-incr", 0.32),
    ("mouth/mouth-trans-down", "mouth/mouth-trans-up", 0.28),
    ("mouth/mouth-cupidsbow-decr", "mouth/mouth-cupidsbow-incr", 0.32),
    ("mouth/mouth-trans-backward", "mouth/mouth-trans-forward", 0.24),
    ("neck/neck-scale-horiz-decr", "neck/neck-scale-horiz-incr", 0.2),
    ("ears/*-ear-scale-decr", "ears/*-ear-scale-incr", 0.28),
    ("ears/*-ear-wing-decr", "ears/*-ear-wing-incr", 0.32),
    ("asym/asym-brown-1-l", "asym/asym-brown-1-r", 0.2),
    ("asym/asym-mouth-1-l", "asym/asym-mouth-1-r", 0.2),
    ("asym/asym-nose-1-l", "asym/asym-nose-1-r", 0.2),
    ("asym/asym-jaw-1-l", "asym/asym-jaw-1-r", 0.2),
)

HAIR_STYLES = (
    "bald", "buzz", "short01", "short02", "short04", "short03",
    "bob01", "bob02", "long01", "ponytail01", "braid01", "afro01",
)  # fmt: skip
# How likely each style is for men and women, as logits before noise.
MALE_HAIR = np.array([0.9, 0.9, 0.8, 1.1, 0.9, 0.4, -3.0, -3.0, -1.6, -2.5, -4.0, -0.6])
FEMALE_HAIR = np.array([-2.0, -1.6, -0.9, -0.8, -1.1, 0.1, 0.6, 0.6, 1.4, 0.9, 0.2, -0.8])
LONG_HAIR = {"bob01", "bob02", "long01", "braid01"}
FRINGED_HAIR = {"bob01", "bob02", "short03"}

BEARDS = ("stubble", "moustache", "goatee", "full")

# name -> how many entries of z it takes
FACTORS = {
    "sex": 1, "age": 1, "muscle": 1, "weight": 1, "ancestry": 3, "details": len(DETAILS), "chubby": 1,
    "smile": 1, "open": 1, "brow_raise": 1, "squint": 1, "pucker": 1, "gaze": 2,
    "skin": 3, "hair_tone": 1, "hair_red": 1, "grey": 1, "brow": 2, "iris": 1, "lipstick": 2, "makeup": 2,
    "rosy": 1, "freckles": 1, "wrinkles": 1, "beard": 5, "hair_style": len(HAIR_STYLES), "hair_side": 1,
    "hat": 4, "glasses": 4, "shirt": 4, "light": 6, "background": 8,
}  # fmt: skip
Z_DIM = sum(FACTORS.values())

# sRGB ramps, pale to dark skin, black to blond hair, brown to blue eyes.
SKIN_TONES = np.array([
    [250, 222, 205], [241, 202, 178], [228, 182, 152], [205, 152, 118],
    [171, 116, 82], [128, 82, 56], [92, 58, 42],
]) / 255  # fmt: skip
HAIR_TONES = np.array([
    [38, 33, 32], [58, 43, 36], [88, 60, 42], [125, 86, 54],
    [170, 124, 74], [210, 172, 115], [230, 204, 158],
]) / 255  # fmt: skip
IRIS_TONES = np.array([
    [58, 36, 20], [92, 60, 30], [110, 95, 55], [85, 110, 80],
    [85, 125, 150], [110, 150, 190], [130, 140, 145],
]) / 255  # fmt: skip
GREY_HAIR = np.array([0.72, 0.71, 0.70])

AGE_YEARS = (0, 0.05, 0.13, 0.5, 0.78, 1), (5, 10, 18, 34, 55, 88)  # quantile of the age factor -> years
ADULT_YEARS = 15


@dataclass
class Light:
    """One soft key light and an ambient term; colours are linear RGB."""

    direction: np.ndarray  # [3] unit, towards the light
    key: np.ndarray  # [3]
    ambient: np.ndarray  # [3]
    exposure: float
    casts_shadow: bool


@dataclass
class Person:
    """One person with an expression, a hairdo and things worn. Colours are sRGB in [0, 1], strengths in [0, 1]."""

    male: float
    years: float
    muscle: float  # [-1, 1]
    weight: float  # [-1, 1]
    ancestry: np.ndarray  # [3], sums to 1, see ANCESTRIES
    details: np.ndarray  # [len(DETAILS)] signed target weights in [-1, 1]
    chubby: float  # [-1, 1]
    smile: float  # [-.35, 1]
    mouth_open: float
    brow_raise: float  # [-1, 1]
    squint: float  # [-1, 1]
    pucker: float
    gaze: np.ndarray  # [2] yaw, pitch in radians
    skin_tone: float  # 0 pale, 1 dark
    skin: np.ndarray
    hair: np.ndarray
    grey: float
    brow_density: float
    brow_thickness: float
    iris: np.ndarray
    lip: np.ndarray
    lipstick: float
    makeup: float
    eyeshadow: np.ndarray
    rosy: float
    freckles: float
    wrinkles: float
    beard: np.ndarray  # [4], see BEARDS
    hair_style: int
    hair_flipped: bool
    hat: bool
    hat_color: np.ndarray
    glasses: float  # 0 none, 1 frames
    sunglasses: float
    frame_color: np.ndarray
    frame_radius: float
    frame_width: float
    shirt: np.ndarray
    light: Light
    background: np.ndarray  # [2, 3] top and bottom colour

    @property
    def hair_name(self) -> str:
        return HAIR_STYLES[self.hair_style]


def sample_person(z: np.ndarray) -> Person:
    """The person of one z [Z_DIM]; z ~ N(0, I) samples the population."""
    assert z.shape == (Z_DIM,), z.shape
    f, start = {}, 0
    for name, count in FACTORS.items():
        f[name] = np.asarray(z[start : start + count], float) if count > 1 else float(z[start])
        start += count

    male = expit(4 * f["sex"])
    years = float(np.interp(ndtr(f["age"]), *AGE_YEARS))
    adult = expit((years - ADULT_YEARS) * 1.5)
    ancestry = softmax((f["ancestry"] + [0.5, 0, 0]) * 1.8)
    skin_tone = float(np.clip(ancestry @ [0.22, 0.33, 0.80] + 0.10 * f["skin"][0], 0.04, 0.98))
    skin = np.clip(_ramp(SKIN_TONES, skin_tone) * (1 + 0.025 * np.array([f["skin"][1], 0, f["skin"][2]])), 0, 1)

    tone = np.clip(ancestry @ [0.50, 0.08, 0.06] + (0.30 * ancestry[0] + 0.07) * f["hair_tone"], 0, 0.99)
    hair = _ramp(HAIR_TONES, tone) * _mix(
        np.ones(3), np.array([1.25, 0.75, 0.55]), min(1, max(0, f["hair_red"] - 1.2) * ancestry[0])
    )
    grey = float(np.clip((years - 46) / 26 + 0.45 * f["grey"], 0, 1) * expit((years - 30) * 0.4))
    hair = np.clip(_mix(hair, GREY_HAIR, grey * 0.95), 0, 1)

    painted = 0.15 + 0.85 * expit(
        -6 * (male - 0.5)
    )  # make-up is rarer on men, not impossible: the labels stay separable
    lipstick = float(np.clip(f["lipstick"][0] * 0.9 - 0.1, 0, 1) * painted * adult)
    bare_lip = skin * _mix(np.array([0.93, 0.72, 0.70]), np.array([0.86, 0.66, 0.64]), skin_tone)
    lip_color = _mix(np.array([0.72, 0.12, 0.16]), np.array([0.80, 0.32, 0.38]), _unit(0.5 + 0.4 * f["lipstick"][1]))

    bearded = expit((male - 0.6) * 12) * expit((years - 20) * 0.8)
    stubble = np.clip(0.25 + 0.35 * f["beard"][0], 0, 0.7)
    # Moustache, goatee and full beard are three independent wishes; a full beard contains the other two.
    wishes = np.clip((f["beard"][1:4] - [0.75, 0.85, 0.55]) * 2.0, 0, 1) * (0.72 + 0.2 * np.tanh(f["beard"][4]))
    beard = np.concatenate([[stubble], wishes]) * bearded

    logits = 1.1 * f["hair_style"] + MALE_HAIR * male + FEMALE_HAIR * (1 - male)
    logits[HAIR_STYLES.index("bald")] += 1.2 * male * max(0.0, (years - 40) / 25)
    logits[HAIR_STYLES.index("afro01")] += 2.0 * ancestry[2]

    azimuth, elevation = 0.75 * f["light"][0], 0.45 + 0.3 * f["light"][1]
    share = np.clip(0.62 + 0.12 * f["light"][2], 0.3, 0.9)  # of the key in all light
    warm = 0.06 * f["light"][3]
    light = Light(
        direction=np.array(
            [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
        ),
        key=1.4 * share * np.array([1 + warm, 1, 1 - warm]),
        ambient=1.55 * (1 - share) * np.array([1 - 0.05 * f["light"][4], 1, 1.02]),
        exposure=math.exp(0.15 * f["light"][5]),
        casts_shadow=True,
    )
    top = np.clip(0.5 + 0.28 * f["background"][0] + 0.10 * f["background"][1:4], 0.02, 0.98)

    return Person(
        male=male,
        years=years,
        muscle=float(np.clip(0.4 * f["muscle"], -1, 1)),
        weight=float(np.clip(-0.05 + 0.38 * f["weight"], -1, 1)),
        ancestry=ancestry,
        details=np.clip(f["details"] * [spread for _, _, spread in DETAILS], -1, 1),
        chubby=float(np.clip(0.5 * f["chubby"], -0.7, 1)),
        smile=float(np.clip(0.25 + 0.6 * f["smile"], -0.35, 1)),
        mouth_open=float(np.clip(-0.25 + 0.65 * f["open"], 0, 1)),
        brow_raise=float(np.clip(0.15 + 0.4 * f["brow_raise"], -0.5, 0.9)),
        squint=float(np.clip(0.4 * f["squint"], -1, 1)),
        pucker=float(np.clip(-1.0 + 0.8 * f["pucker"], 0, 0.7)),
        gaze=f["gaze"] * [0.12, 0.08],
        skin_tone=skin_tone,
        skin=skin,
        hair=hair,
        grey=grey,
        brow_density=float(np.clip(0.82 + 0.2 * f["brow"][0] + 0.1 * (male - 0.5), 0.3, 1)),
        brow_thickness=float(np.clip(0.052 + 0.010 * f["brow"][1] + 0.014 * (male - 0.5), 0.03, 0.08)),
        iris=_ramp(IRIS_TONES, np.clip(0.45 * ancestry[0] + 0.02 + 0.28 * ancestry[0] * f["iris"], 0, 0.99)),
        lip=_mix(bare_lip, lip_color, 0.8 * lipstick),
        lipstick=lipstick,
        makeup=float(np.clip(f["makeup"][0] * 0.8 - 0.1, 0, 1) * painted * adult),
        eyeshadow=_mix(np.array([0.25, 0.16, 0.14]), np.array([0.30, 0.25, 0.42]), _unit(0.5 + 0.4 * f["makeup"][1])),
        rosy=_unit(0.35 + 0.3 * f["rosy"]),
        freckles=_unit(f["freckles"] - 1.1) * ancestry[0],
        wrinkles=_unit((years - 35) / 40 + 0.12 * f["wrinkles"]),
        beard=beard,
        hair_style=int(np.argmax(logits)),
        hair_flipped=f["hair_side"] > 0,
        hat=f["hat"][0] > 1.05,
        hat_color=np.clip(np.array([0.3, 0.28, 0.27]) + 0.22 * f["hat"][1:4], 0.03, 0.95),
        glasses=float(f["glasses"][0] > 0.55),
        sunglasses=float(f["glasses"][0] > 1.75),
        frame_color=_mix(np.full(3, 0.05), np.array([0.45, 0.30, 0.15]), _unit(0.5 * f["glasses"][1])),
        frame_radius=float(np.clip(0.018 + 0.005 * f["glasses"][2], 0.012, 0.03)),
        frame_width=float(np.clip(1 + 0.1 * f["glasses"][3], 0.75, 1.25)),
        shirt=np.clip(0.4 + 0.3 * f["shirt"][0] + 0.09 * f["shirt"][1:], 0.03, 0.97),
        light=light,
        background=np.stack([top, np.clip(top + 0.12 * f["background"][4:7], 0, 1)]),
    )


def person_features(person: Person) -> np.ndarray:
    """What the generator is fed as z [F]: all that shapes the picture but the background. The light comes last."""
    light = person.light
    return np.concatenate([
        [person.male, (person.years - 35) / 20, _age_position(person.years), person.muscle, person.weight],
        [person.chubby],
        person.ancestry,
        person.details,
        [person.smile, max(0, person.smile), person.mouth_open, person.brow_raise, person.squint, person.pucker],
        person.gaze,
        [person.skin_tone], person.skin, person.hair, [person.grey, person.brow_density, person.brow_thickness],
        person.iris,
        person.lip, [person.lipstick, person.makeup], person.makeup * person.eyeshadow,
        [person.rosy, person.freckles, person.wrinkles],
        person.beard,
        np.eye(len(HAIR_STYLES))[person.hair_style],
        [person.hair_flipped * 1.0],
        [person.hat * 1.0], person.hat * person.hat_color,
        [person.glasses, person.sunglasses, person.glasses * person.frame_radius, person.glasses * person.frame_width],
        person.glasses * person.frame_color,
        person.shirt,
        light.direction, light.key, light.ambient, [light.exposure],
    ])  # fmt: skip


def person_attributes(person: Person) -> dict[str, float]:
    """Soft labels in [0, 1] (above .5: yes), named as in CelebA where CelebA has the name."""

    def over(value, threshold, softness):
        return float(expit((value - threshold) / softness))

    detail = {plus: value for (_, plus, _), value in zip(DETAILS, person.details)}
    stubble, moustache, goatee, full = person.beard
    hair_shown = 1.0 - (person.hair_name == "bald")
    brightness = person.hair @ [0.3, 0.6, 0.1]
    long_hair = float(person.hair_name in LONG_HAIR)
    warm = person.hair[0] - person.hair[2]
    return {
        "5_o_Clock_Shadow": over(stubble, 0.3, 0.05) * (1 - over(full, 0.25, 0.05)),
        "Arched_Eyebrows": over(person.brow_raise + detail["eyebrows/eyebrows-angle-up"], 0.45, 0.12),
        "Bags_Under_Eyes": over(detail["eyes/*-eye-bag-incr"] + person.wrinkles, 0.55, 0.1),
        "Bald": 1.0 - hair_shown,
        "Bangs": float(person.hair_name in FRINGED_HAIR and not person.hat),
        "Big_Lips": over(
            detail["mouth/mouth-upperlip-volume-incr"] + detail["mouth/mouth-lowerlip-volume-incr"], 0.3, 0.12
        ),
        "Big_Nose": over(
            detail["nose/nose-scale-horiz-incr"] + detail["nose/nose-volume-incr"] + 0.4 * person.ancestry[2],
            0.4,
            0.12,
        ),
        "Black_Hair": over(-brightness, -0.19, 0.015) * hair_shown,
        "Blond_Hair": over(brightness, 0.5, 0.03) * over(warm, 0.14, 0.02) * hair_shown,
        "Brown_Hair": over(brightness, 0.19, 0.015)
        * over(-brightness, -0.5, 0.03)
        * over(warm, 0.08, 0.02)
        * hair_shown,
        "Bushy_Eyebrows": over(person.brow_thickness * person.brow_density, 0.052, 0.003),
        "Chubby": over(person.chubby, 0.35, 0.08),
        "Double_Chin": over(person.chubby, 0.55, 0.08),
        "Eyeglasses": person.glasses,
        "Freckles": over(person.freckles, 0.2, 0.05),
        "Full_Beard": over(full, 0.3, 0.05),
        "Goatee": over(max(goatee, full), 0.3, 0.05) * (1 - over(full, 0.3, 0.05)),
        "Gray_Hair": over(person.grey, 0.5, 0.06) * hair_shown,
        "Heavy_Makeup": over(person.makeup, 0.3, 0.05),
        "High_Cheekbones": over(detail["cheek/*-cheek-bones-incr"] + 0.5 * max(0, person.smile), 0.4, 0.1),
        "Long_Hair": long_hair,
        "Male": over(person.male, 0.5, 0.08),
        "Mouth_Slightly_Open": over(person.mouth_open, 0.15, 0.04),
        "Mustache": over(max(moustache, goatee, full), 0.25, 0.05),
        "Narrow_Eyes": over(person.squint - detail["eyes/*-eye-height2-incr"], 0.4, 0.1),
        "No_Beard": 1 - over(max(moustache, goatee, full), 0.2, 0.04),
        "Oval_Face": over(detail["head/head-oval"], 0.15, 0.08),
        "Pale_Skin": over(-person.skin_tone, -0.17, 0.03),
        "Dark_Skin": over(person.skin_tone, 0.6, 0.03),
        "Pointy_Nose": over(detail["nose/nose-point-up"] - detail["nose/nose-volume-incr"], 0.25, 0.1),
        "Receding_Hairline": over(detail["forehead/forehead-scale-vert-incr"], 0.25, 0.07) * hair_shown,
        "Rosy_Cheeks": over(person.rosy, 0.6, 0.06),
        "Sideburns": over(max(full, 0.6 * stubble), 0.3, 0.05),
        "Smiling": over(person.smile, 0.35, 0.06),
        "Sunglasses": person.sunglasses,
        "Straight_Hair": float(person.hair_name in {"long01", "short02", "bob01"}),
        "Wavy_Hair": float(person.hair_name in {"short01", "bob02", "afro01"}),
        "Wearing_Hat": person.hat * 1.0,
        "Wearing_Lipstick": over(person.lipstick, 0.3, 0.05),
        "Young": over(-person.years, -42, 2.5),
    }


def macro_targets(person: Person) -> dict[str, float]:
    """Weights of MakeHuman's macro targets: age x sex x ancestry, and muscle x weight within each."""
    ages = ("baby", "child", "young", "old")
    position = _age_position(person.years) * 3
    age_weights = np.clip(1 - np.abs(position - np.arange(4)), 0, 1)

    def three(value):
        return {"min": max(0.0, -value), "average": 1 - abs(value), "max": max(0.0, value)}

    weights = {}
    for sex, sex_weight in (("female", 1 - person.male), ("male", person.male)):
        for age, age_weight in zip(ages, age_weights):
            share = sex_weight * age_weight
            for ancestry, part in zip(ANCESTRIES, person.ancestry):
                weights[f"macrodetails/{ancestry}-{sex}-{age}"] = share * part
            for muscle, m in three(person.muscle).items():
                for weight, w in three(person.weight).items():
                    weights[f"macrodetails/universal-{sex}-{age}-{muscle}muscle-{weight}weight"] = share * m * w
    return weights


def _age_position(years: float) -> float:
    """Where an age stands on MakeHuman's scale of four keys (1, 12, 25, 90 years), as a fraction of it."""
    return float(np.interp(years, (1, 12, 25, 90), (0, 1 / 3, 2 / 3, 1)))


def _ramp(colors: np.ndarray, position: float) -> np.ndarray:
    place = np.clip(position, 0, 0.999) * (len(colors) - 1)
    return _mix(colors[int(place)], colors[int(place) + 1], place - int(place))


def _mix(a, b, t):
    return a * (1 - t) + b * t


def _unit(value: float) -> float:
    return float(np.clip(value, 0, 1))
