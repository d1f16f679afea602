"""Person -> HeadMesh: morphed head, eyes, hair, hat and glasses as one triangle soup in the EG3D frame.

EG3D frame (x to the viewer's right when facing the face, y up, face to +z): the head is scaled and placed so that a
frontal camera sees, on average, what aligning the photo by the five points would give.
"""

import math
from dataclasses import dataclass

import numpy as np

from train.heads.sampler import DETAILS, FRINGED_HAIR, Person, macro_targets
from train.heads.source import ANCESTRIES, MASKS, HeadSource


# Materials, the numbers that the shader branches on.
SKIN, EYE, TEETH, TONGUE, HAIR, CURLS, HAT, FRAME, LENS = range(9)

# The average head's five points, seen from the front, then fit the crop's template in the least-squares sense.
EYE_DISTANCE = 0.158  # between eyeball centres, EG3D units
EYE_TO_MOUTH = 0.169
EYE_CENTER = np.array([0, 0.070, 0.155])
CORNEA_DEPTH = 0.03  # from the eyeball's centre to where the lids are seen

# MakeHuman's average face has closer eyes, a longer nose and a narrower, lower mouth than the template, and beside
# aligned photos a broader head, a heavier jaw and smaller eyes: what is added to everyone's details.
TO_TEMPLATE = {
    "nose/nose-scale-vert-incr": -0.8,
    "nose/nose-point-up": 0.3,
    "eyes/*-eye-trans-out": 0.5,
    "eyes/*-eye-scale-incr": 0.35,
    "mouth/mouth-trans-up": 0.2,
    "mouth/mouth-scale-horiz-incr": 0.35,
    "head/head-scale-horiz-incr": -0.5,
    "head/head-oval": 0.4,
    "head/head-invertedtriangular": 0.4,
    "chin/chin-width-incr": -0.45,
}

MOUTH_WIDTH = np.float32(0.82)  # of MakeHuman's inside of the mouth, which pierces the cheeks of narrow, smiling faces
HAIR_OFFSET = np.float32(1.04)  # hair stands this much further from the skull's centre, or skin pierces it
SKULL = np.array([0, 0.3, -0.75], np.float32)  # centre of the skull in decimetres from between the eyes


@dataclass
class HeadMesh:
    vertices: np.ndarray  # [V, 3] float32, EG3D units
    faces: np.ndarray  # [F, 3] int64
    material: np.ndarray  # [F] int32
    rest: np.ndarray  # [V, 3] float32: where the vertex is on the average head (decimetres from between the eyes)
    masks: np.ndarray  # [V, 5] float32, see source.MASKS
    points: np.ndarray  # [5, 3] eye centres (image left first), nose tip, mouth corners


class HeadBuilder:
    """Turns people into meshes of their heads; holds what is the same for all of them."""

    def __init__(self, source: HeadSource):
        self.source = source
        average = Person(**{**dict.fromkeys(Person.__dataclass_fields__), "male": 0.5, "years": 25.0, "muscle": 0.0,
                            "weight": 0.0, "ancestry": np.array([0.6, 0.2, 0.2])})  # fmt: skip
        vertices = source.morph(macro_targets(average))
        self.rest = (vertices - self._eye_middle(vertices)).astype(np.float32)
        skin = np.unique(source.body)
        self._bridge = self._nearest(skin, (0, 0, 0.35))
        self._temples = self._nearest(skin, (-0.72, 0.02, -0.55)), self._nearest(skin, (0.72, 0.02, -0.55))
        lips = skin[source.masks[skin, 0] > 0.5]
        self._lips = lips
        self._mouth_corners = lips[np.argmin(self.rest[lips, 0])], lips[np.argmax(self.rest[lips, 0])]
        nose = skin[(np.abs(self.rest[skin, 0]) < 0.08) & (np.abs(self.rest[skin, 1] + 0.38) < 0.25)]
        inside = source.masks[:, MASKS.index("inside-mouth")].copy()
        inside[source.teeth] = inside[source.tongue] = 1
        self._narrower = 1 + inside * (MOUTH_WIDTH - 1)
        self._nose_tip = nose[np.argmax(self.rest[nose, 2])]

    def _eye_middle(self, vertices):
        return 0.5 * (vertices[self.source.left_eye].mean(0) + vertices[self.source.right_eye].mean(0))

    def _nearest(self, candidates, point):
        return candidates[np.argmin(((self.rest[candidates] - np.array(point)) ** 2).sum(1))]

    def build(self, person: Person) -> HeadMesh:
        """The mesh of one person's head, in its expression, with hair, hat and glasses."""
        source = self.source
        base = source.morph(morph_weights(person))
        middle = self._eye_middle(base)
        eyes = [base[index] for index in (source.right_eye, source.left_eye)]  # image left first: the head's right eye
        eye_distance = np.linalg.norm(eyes[0].mean(0) - eyes[1].mean(0))
        # The lips move with the expression; their height at rest sets the scale: a smile does not shrink the head.
        calm = source.morph(morph_weights(person, expression=False))
        eye_to_mouth = middle[1] - calm[self._lips, 1].mean()
        scale = 0.5 * (EYE_DISTANCE / eye_distance + EYE_TO_MOUTH / eye_to_mouth)

        skin = _raise_shoulders(base - middle)
        skin[:, 0] *= self._narrower
        soup = _Soup()
        first = soup.add(skin, source.body, SKIN, rest=self.rest, masks=source.masks)
        soup.add_faces(source.tongue + first, TONGUE)
        soup.add_faces(source.teeth + first, TEETH)

        centers = []
        for vertices in eyes:
            center = 0.5 * (vertices.max(0) + vertices.min(0)) - middle
            radius = 0.5 * np.ptp(vertices, axis=0)[:2].mean()
            turned = EYE_SPHERE[0] @ _gaze_rotation(person.gaze, center[0]).T
            soup.add(turned * radius * 1.005 + center, EYE_SPHERE[1], EYE, rest=EYE_SPHERE[0])
            centers.append(center)
        if person.hair_name in source.garments:
            self._add_hair(soup, person, base, middle)
        if person.hat:
            hat = _raise_shoulders(source.garments["fedora"].follow(base) - middle)
            soup.add(
                (hat - SKULL) * np.float32(1.09) + SKULL + np.float32([0, 0.06, 0]),
                source.garments["fedora"].faces,
                HAT,
            )
        if person.glasses:
            temples = [skin[t] for t in self._temples]
            add_glasses(soup, person, skin[self._bridge], centers, temples, eye_distance / 0.6)

        def to_frame(points):
            return points * scale + EYE_CENTER

        corners = [skin[i] for i in self._mouth_corners]
        points = np.stack(
            [*(to_frame(c) + [0, 0, CORNEA_DEPTH] for c in centers), *map(to_frame, (skin[self._nose_tip], *corners))]
        )
        return soup.mesh(to_frame, points)

    def _add_hair(self, soup, person, base, middle):
        garment = self.source.garments[person.hair_name]
        hair = _raise_shoulders(SKULL + (garment.follow(base) - middle - SKULL) * HAIR_OFFSET)
        faces = garment.faces.astype(np.int64)
        if person.hair_flipped:
            hair = hair * np.array([-1, 1, 1], np.float32)
            faces = faces[:, ::-1]
        if person.hair_name in FRINGED_HAIR or person.hair_name == "braid01":
            # These fringes cover an eye: what hangs in front of the forehead below its middle is pulled up.
            fringe = _smoothstep(hair[:, 2], -0.30, 0.02) * (1 - _smoothstep(np.abs(hair[:, 0]), 0.62, 0.85))
            lifted = np.where(hair[:, 1] < 0.62, 0.62 + (hair[:, 1] - 0.62) * 0.30, hair[:, 1])
            hair[:, 1] += (lifted - hair[:, 1]) * fringe
        if person.hat:  # the crown goes under the hat, and what would pierce it is cut
            hair = np.where(hair[:, 1:2] > 0.45, SKULL + (hair - SKULL) * np.float32(0.9), hair)
            faces = faces[hair[faces][:, :, 1].max(1) < 0.7]
        soup.add(hair, faces, CURLS if person.hair_name == "afro01" else HAIR)


def morph_weights(person: Person, expression: bool = True) -> dict[str, float]:
    """Target name -> weight for `HeadSource.morph`."""
    weights = macro_targets(person)

    def add(target, value):
        for name in (target.replace("*", "l"), target.replace("*", "r")) if "*" in target else (target,):
            weights[name] = weights.get(name, 0.0) + value

    for (minus, plus, _), value in zip(DETAILS, person.details):
        value += TO_TEMPLATE.get(plus, 0.0)
        if target := plus if value > 0 else minus:
            add(target, abs(value))
    # Body weight barely moves the face; these do.
    direction = "incr" if person.chubby > 0 else "decr"
    add(f"head/head-fat-{direction}", abs(person.chubby) * 0.9)
    add(f"cheek/*-cheek-volume-{direction}", abs(person.chubby) * 0.8)
    add(f"neck/neck-double-{direction}", abs(person.chubby) * 0.8)
    if not expression:
        return weights

    smile = max(0.0, person.smile)
    units = {
        "mouth-corner-puller": smile * 0.95,
        "mouth-upward-retraction": max(0.0, smile - 0.3) * 0.9,  # shows the teeth
        "mouth-depression": max(0.0, -person.smile) * 1.2,
        "mouth-open": person.mouth_open * 0.55,
        "mouth-pursing": person.pucker * (1 - _smoothstep(smile, 0.1, 0.3)),
    }
    for side in ("left", "right"):
        units[f"eyebrows-{side}-up"] = max(0.0, person.brow_raise)
        units[f"eyebrows-{side}-down"] = max(0.0, -person.brow_raise)
        units[f"eye-{side}-slit"] = 0.3 * smile + 0.5 * max(0.0, person.squint)
        units[f"eye-{side}-opened-up"] = 0.25 + 0.6 * max(0.0, -person.squint)  # the base mesh looks sleepy
    for unit, value in units.items():
        for ancestry, share in zip(ANCESTRIES, person.ancestry):
            add(f"expression/{ancestry}/{unit}", value * share)
    return weights


def add_glasses(soup, person: Person, bridge, eye_centers, temples, size: float) -> None:
    """Two rims, a bridge, two arms and, for sunglasses, two lenses."""
    front = max(bridge[2] + 0.03, eye_centers[0][2] + 0.26)
    half_width, half_height = 0.235 * person.frame_width * size, 0.185 * person.frame_width * size
    radius, turn = person.frame_radius, np.linspace(0, 2 * math.pi, 28, endpoint=False)
    for center, temple in zip(eye_centers, temples):
        side = np.sign(center[0])
        x = side * max(abs(center[0]) + 0.015, half_width + 0.05) + half_width * _squircle(np.cos(turn), 0.75)
        rim = np.stack(
            [x, -0.04 + half_height * _squircle(np.sin(turn), 0.8), front - 0.10 * ((np.abs(x) - 0.05) / 0.5) ** 2], 1
        )
        soup.add(*_tube(rim, radius, closed=True), FRAME)
        if person.sunglasses:
            fan = np.array([[i, (i + 1) % len(rim), len(rim)] for i in range(len(rim))])
            soup.add(np.concatenate([rim, [rim.mean(0)]]), fan, LENS)
        hinge = rim[np.argmax(side * rim[:, 0])]
        over_ear = [temple[0] + side * 0.035, hinge[1] * 0.3 + 0.02, temple[2] + 0.45]
        soup.add(*_tube([hinge, over_ear, [temple[0] + side * 0.03, 0.03, temple[2] - 0.15]], radius * 0.9), FRAME)
    soup.add(*_tube([[-0.075, 0, front], [0, 0.03, front + 0.03], [0.075, 0, front]], radius), FRAME)


class _Soup:
    """Collects parts into one mesh."""

    def __init__(self):
        self.vertices, self.faces, self.material, self.rest, self.masks, self.count = [], [], [], [], [], 0

    def add(self, vertices, faces, material, rest=None, masks=None) -> int:
        """Adds a part; gives the index of its first vertex."""
        first, n = self.count, len(vertices)
        self.vertices.append(np.asarray(vertices, np.float32))
        self.rest.append(np.asarray(vertices if rest is None else rest, np.float32))
        self.masks.append(np.zeros((n, 5), np.float32) if masks is None else masks)
        self.count += n
        self.add_faces(np.asarray(faces, np.int64) + first, material)
        return first

    def add_faces(self, faces, material) -> None:
        self.faces.append(faces)
        self.material.append(np.full(len(faces), material, np.int32))

    def mesh(self, to_frame, points) -> HeadMesh:
        return HeadMesh(
            vertices=to_frame(np.concatenate(self.vertices)).astype(np.float32),
            faces=np.concatenate(self.faces),
            material=np.concatenate(self.material),
            rest=np.concatenate(self.rest).astype(np.float32),
            masks=np.concatenate(self.masks).astype(np.float32),
            points=points.astype(np.float32),
        )


def _raise_shoulders(points):
    """MakeHuman's neck is long for a portrait crop: what is below the chin moves up and forward (decimetres)."""
    below = _smoothstep(-points[:, 1], 1.15, 1.75)
    return (points + below[:, None] * np.array([0, 0.34, 0.12])).astype(np.float32)


def _gaze_rotation(gaze, x):
    yaw, pitch = gaze[0] - 0.03 * np.sign(x), gaze[1]  # the eyes converge a little
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])


def _front_sphere(around=20, rings=12, opening=1.9):
    """A unit sphere around +z, open at the back (only its front is ever seen)."""
    polar = opening * np.repeat(np.arange(rings + 1) / rings, around)
    azimuth = 2 * math.pi * np.tile(np.arange(around) / around, rings + 1)
    points = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], 1)
    faces = []
    for ring in range(rings):
        for i in range(around):
            a, b = ring * around + i, ring * around + (i + 1) % around
            faces += [[a, a + around, b], [b, a + around, b + around]]
    return points.astype(np.float32), np.array(faces)


EYE_SPHERE = _front_sphere()


def _tube(path, radius, closed=False, around=6):
    """A tube [V, 3], [F, 3] along a path of points."""
    path = np.asarray(path, float)
    n, points, faces = len(path), [], []
    for i in range(n):
        ahead = path[(i + 1) % n] - path[i - 1] if closed else path[min(i + 1, n - 1)] - path[max(i - 1, 0)]
        ahead /= np.linalg.norm(ahead)
        u = np.cross(ahead, [0.3, 1, 0.2])
        u /= np.linalg.norm(u)
        v = np.cross(ahead, u)
        for j in range(around):
            angle = 2 * math.pi * j / around
            points.append(path[i] + radius * (math.cos(angle) * u + math.sin(angle) * v))
    for i in range(n if closed else n - 1):
        for j in range(around):
            a, b = i * around + j, i * around + (j + 1) % around
            c, d = (i + 1) % n * around + j, (i + 1) % n * around + (j + 1) % around
            faces += [[a, c, b], [b, c, d]]
    return np.array(points, np.float32), np.array(faces)


def _squircle(t, power):
    return np.sign(t) * np.abs(t) ** power


def _smoothstep(x, low, high):
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
