"""The inner loops of the renderer, compiled by numba: rasterise, then colour each visible pixel.

Textures are procedural and live in the rest pose (decimetres from between the eyes), so that they stick to the skin
under any morph. Noise is a function of the place alone: everything here is a smooth function of the head's parameters.
"""

import math

import numba
import numpy as np

from train.heads.geometry import CURLS, EYE, FRAME, HAIR, HAT, LENS, SKIN, TEETH, TONGUE


# Rows of the palette [PALETTE, 3], linear RGB.
(
    C_SKIN,
    C_LIP,
    C_EYESHADOW,
    C_HAIR,
    C_BROW,
    C_BEARD,
    C_SHIRT,
    C_IRIS,
    C_SCLERA,
    C_MOUTH,
    C_TEETH,
    C_HAT,
    C_FRAME,
    C_KEY,
    C_AMBIENT,
) = range(15)
PALETTE = 15
# Entries of the amounts [AMOUNTS].
(A_ROSY, A_FRECKLES, A_WRINKLES, A_MAKEUP, A_LIPSTICK, A_SCALP, A_BROW_THICKNESS, A_BROW_DENSITY,
 A_STUBBLE, A_MOUSTACHE, A_GOATEE, A_FULL_BEARD, A_EXPOSURE) = range(13)  # fmt: skip
AMOUNTS = 13

# The bust ends at this cylinder and this height (EG3D units), inside the generator's box.
BUST_RADIUS, BUST_BOTTOM = 0.37, -0.37

SHADOW_HALF_WIDTH = 0.62  # of the square that shadow and occlusion maps cover
_jit = numba.njit(cache=True, fastmath=True)


@_jit
def vertex_normals(vertices, faces, normals):
    """Area-weighted unit normals [V, 3] into `normals`."""
    normals[:] = 0
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        u0, u1, u2 = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        v0, v1, v2 = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        x, y, z = u1 * v2 - u2 * v1, u2 * v0 - u0 * v2, u0 * v1 - u1 * v0
        for i in (a, b, c):
            normals[i, 0] += x
            normals[i, 1] += y
            normals[i, 2] += z
    for i in range(normals.shape[0]):
        length = math.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2) + 1e-12
        for k in range(3):
            normals[i, k] /= length


@_jit
def rasterise(screen, vertices, faces, nearness, face_map, barycentric):
    """Nearest face per pixel. `screen` [V, 3] holds x, y in pixels and 1/depth (larger: nearer); perspective-correct.

    Writes `nearness` [H, W] (0: nothing), `face_map` [H, W] (-1: nothing) and the first two `barycentric` [H, W, 2].
    """
    height, width = nearness.shape
    nearness[:] = 0
    face_map[:] = -1
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, w0 = screen[a, 0], screen[a, 1], screen[a, 2]
        x1, y1, w1 = screen[b, 0], screen[b, 1], screen[b, 2]
        x2, y2, w2 = screen[c, 0], screen[c, 1], screen[c, 2]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9:
            continue
        left, right = max(0, math.ceil(min(x0, x1, x2) - 0.5)), min(width - 1, math.floor(max(x0, x1, x2) - 0.5))
        top, bottom = max(0, math.ceil(min(y0, y1, y2) - 0.5)), min(height - 1, math.floor(max(y0, y1, y2) - 0.5))
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                l1 = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) / area
                l2 = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / area
                l0 = 1 - l1 - l2
                if l0 < 0 or l1 < 0 or l2 < 0:
                    continue
                w = l0 * w0 + l1 * w1 + l2 * w2
                if w <= nearness[row, column]:
                    continue
                p0, p1 = l0 * w0 / w, l1 * w1 / w
                p2 = 1 - p0 - p1
                wx = p0 * vertices[a, 0] + p1 * vertices[b, 0] + p2 * vertices[c, 0]
                wy = p0 * vertices[a, 1] + p1 * vertices[b, 1] + p2 * vertices[c, 1]
                wz = p0 * vertices[a, 2] + p1 * vertices[b, 2] + p2 * vertices[c, 2]
                if wy < BUST_BOTTOM or wx * wx + wz * wz > BUST_RADIUS * BUST_RADIUS:
                    continue
                nearness[row, column] = w
                face_map[row, column] = f
                barycentric[row, column, 0] = p0
                barycentric[row, column, 1] = p1


@_jit
def count_visible(normals, screen, nearness, direction, bias, seen, total):
    """Adds, per vertex facing `direction`, the cosine to `total` and, where nothing hides it, to `seen`."""
    height, width = nearness.shape
    for i in range(screen.shape[0]):
        cosine = normals[i, 0] * direction[0] + normals[i, 1] * direction[1] + normals[i, 2] * direction[2]
        if cosine <= 0:
            continue
        total[i] += cosine
        x, y = int(screen[i, 0]), int(screen[i, 1])
        if x < 0 or y < 0 or x >= width or y >= height or screen[i, 2] + bias >= nearness[y, x]:
            seen[i] += cosine


@_jit
def shade(face_map, barycentric, faces, material, vertices, normals, rest, masks, openness, shadow_map, shadow_axes,
          light, palette, amounts, rgba):  # fmt: skip
    """Colours every pixel of `face_map` into `rgba` [H, W, 4] (sRGB, alpha 0 or 1). `shadow_map` [0, 0]: no shadow."""
    albedo = np.zeros(3)
    gloss = np.zeros(3)  # strength, exponent, how far light wraps around (skin's translucency)
    place, world, normal, mask = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(5)
    for row in range(face_map.shape[0]):
        for column in range(face_map.shape[1]):
            f = face_map[row, column]
            if f < 0:
                rgba[row, column, :] = 0
                continue
            b0, b1 = barycentric[row, column, 0], barycentric[row, column, 1]
            b2 = 1 - b0 - b1
            i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
            interpolate(rest, i0, i1, i2, b0, b1, b2, place)
            interpolate(vertices, i0, i1, i2, b0, b1, b2, world)
            interpolate(masks, i0, i1, i2, b0, b1, b2, mask)
            interpolate(normals, i0, i1, i2, b0, b1, b2, normal)
            length = math.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-9
            for c in range(3):
                normal[c] /= length
            openness_here = b0 * openness[i0] + b1 * openness[i1] + b2 * openness[i2]
            kind = material[f]
            gloss[0], gloss[1], gloss[2] = 0.0, 20.0, 0.0
            if kind == SKIN:
                paint_skin(place, mask, palette, amounts, albedo, gloss)
            elif kind == EYE:
                paint_eye(place, palette, albedo)
                openness_here = openness_here * 0.5 + 0.5
            elif kind == HAIR:
                azimuth = math.atan2(place[0], place[2] + 0.75)
                strands = 0.55 * noise(azimuth * 34, place[1] * 2.2, 0.5, 41) + 0.45 * noise(
                    azimuth * 80, place[1] * 5, 0.5, 43
                )
                fill(albedo, palette[C_HAIR], 0.6 + 0.8 * strands)
                gloss[0], gloss[1], gloss[2] = 0.2, 10.0, 0.2
            elif kind == CURLS:
                lumps = 0.5 * noise(place[0] * 9, place[1] * 9, place[2] * 9, 61) + 0.5 * noise(
                    place[0] * 22, place[1] * 22, place[2] * 22, 67
                )
                fill(albedo, palette[C_HAIR], 0.45 + 1.1 * lumps)
            elif kind == HAT:
                fill(albedo, palette[C_HAT], 1 + 0.25 * (noise(place[0] * 30, place[1] * 30, place[2] * 30, 51) - 0.5))
            elif kind == TEETH:
                fill(albedo, palette[C_TEETH], 1.0)
                openness_here = 0.4 + 0.6 * openness_here
                gloss[0] = 0.3
            elif kind == TONGUE:
                fill(albedo, palette[C_MOUTH], 1.0)
            elif kind == FRAME:
                fill(albedo, palette[C_FRAME], 1.0)
                gloss[0], gloss[1] = 0.4, 30.0
            elif kind == LENS:
                fill(albedo, palette[C_FRAME], 0.15)
                gloss[0], gloss[1] = 0.5, 30.0

            lit = 1.0
            if shadow_map.shape[0] > 0:
                lit = light_reaching(world, shadow_map, shadow_axes)
            facing = normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2]
            half = math.sqrt(light[0] ** 2 + light[1] ** 2 + (light[2] + 1) ** 2)
            mirrored = max(0.0, (facing + normal[2]) / half)  # the viewer is taken to stand at +z: shine does not move
            shine = gloss[0] * mirrored ** gloss[1] * lit if facing > 0 else 0.0
            sky = 0.62 + 0.38 * normal[1] + 0.35 * max(0.0, 0.55 - 0.6 * light[0] * normal[0] + 0.5 * normal[2])
            for c in range(3):
                wrap = gloss[2] * (1.4 if c == 0 else 0.7)  # red light travels further under the skin
                diffuse = max(0.0, (facing + wrap) / (1 + wrap)) * lit
                color = albedo[c] * (
                    palette[C_KEY, c] * diffuse + palette[C_AMBIENT, c] * sky * (0.12 + 0.88 * openness_here)
                )
                color = (color + 0.25 * shine * palette[C_KEY, c]) * amounts[A_EXPOSURE]
                if color > 0.55:  # a soft shoulder instead of clipping
                    color = 0.55 + 0.45 * (1 - math.exp(-(color - 0.55) / 0.45))
                rgba[row, column, c] = max(0.0, color) ** (1 / 2.2)
            rgba[row, column, 3] = 1.0


@_jit
def interpolate(table, i0, i1, i2, b0, b1, b2, out):
    for k in range(out.shape[0]):
        out[k] = b0 * table[i0, k] + b1 * table[i1, k] + b2 * table[i2, k]


@_jit
def paint_skin(place, mask, palette, amounts, albedo, gloss):
    """Skin with lips, brows, beard, scalp, make-up, freckles, lines and the shirt."""
    x, y, z = place[0], place[1], place[2]
    side = abs(x)
    lips, ears, eyelids, mouth = mask[0], mask[1], mask[2], mask[3]
    coarse = noise(x * 9, y * 9, z * 9, 3) - 0.5
    fine = noise(x * 30, y * 30, z * 30, 5) - 0.5
    fill(albedo, palette[C_SKIN], 1 + 0.08 * coarse + 0.05 * fine)
    gloss[0], gloss[1], gloss[2] = 0.14, 14.0, 0.25

    # Blood near the surface: cheeks, nose, ears.
    red = math.exp(-((side - 0.45) ** 2 + (y + 0.38) ** 2) / 0.045) * smooth(z, -0.3, 0.1)
    red += 0.7 * math.exp(-(x * x + (y + 0.36) ** 2) / 0.02) * smooth(z, 0.2, 0.4) + 0.5 * ears
    tint(albedo, 1 + 0.03 * red * amounts[A_ROSY], 1 - 0.17 * red * amounts[A_ROSY], 1 - 0.15 * red * amounts[A_ROSY])

    if amounts[A_FRECKLES] > 0.01:
        spots = smooth(noise(x * 22, y * 22, z * 22, 11), 0.62, 0.78) * amounts[A_FRECKLES]
        spots *= math.exp(-((side - 0.3) ** 2 + (y + 0.28) ** 2) / 0.08) * smooth(z, -0.3, 0.1)
        tint(albedo, 1 - 0.25 * spots, 1 - 0.42 * spots, 1 - 0.5 * spots)

    # Age: under the eyes, on the forehead, at the outer corners, from nose to mouth.
    age = amounts[A_WRINKLES]
    bags = math.exp(-((side - 0.28) ** 2 / 0.03 + (y + 0.17) ** 2 / 0.004)) * smooth(z, -0.2, 0.1) * (0.25 + 0.6 * age)
    forehead, corner = 0.0, 0.0
    if z > -0.2 and 0.3 < y < 0.85 and side < 0.5:
        waves = smooth(math.sin(y * 40 + 1.5 * math.sin(x * 5) + coarse * 2), 0.45, 1.0)
        forehead = age * 0.6 * waves * smooth(y, 0.3, 0.42) * (1 - smooth(y, 0.6, 0.85)) * (1 - smooth(side, 0.3, 0.5))
    if 0.5 < side < 0.68 and abs(y) < 0.16 and z > -0.3:
        corner = age * 0.35 * smooth(math.sin((y + 0.3 * (side - 0.5)) * 80), 0.3, 1.0)
    fold = (
        math.exp(-(((side - 0.27 - 0.35 * (-y - 0.45)) / 0.035) ** 2))
        * smooth(-y, 0.38, 0.46)
        * (1 - smooth(-y, 0.62, 0.74))
    )
    fold *= age * 0.5 * smooth(z, 0.0, 0.15)
    dark = 1 - 0.28 * bags - 0.24 * forehead - 0.25 * corner - 0.3 * fold
    tint(albedo, dark, dark * (1 - 0.04 * bags), dark)

    blend(albedo, palette[C_LIP], lips, 1 + 0.15 * fine)
    if lips > 0.4:
        gloss[0], gloss[1] = 0.3 + 0.3 * amounts[A_LIPSTICK], 24.0
    blend(albedo, palette[C_MOUTH], 0.9 * mouth, 1.0)

    around_eye = math.sqrt(((side - 0.29) / 0.26) ** 2 + ((y - 0.02) / 0.13) ** 2)
    if z > -0.15 and around_eye < 2.2:
        shadow = amounts[A_MAKEUP] * (1 - smooth(around_eye, 1.0, 1.7)) * smooth(y, -0.05, 0.05) * 0.8
        blend(albedo, palette[C_EYESHADOW], shadow, 1.0)
        liner = 1 - 0.4 * (0.45 + 0.55 * amounts[A_MAKEUP]) * smooth(eyelids, 0.25, 0.7)
        tint(albedo, liner, liner, liner)

    # Hair that grows close to the scalp, up to the hairline.
    if z > 0.1:
        line = 0.78
    elif z > -0.3:
        line = 0.78 - (0.1 - z) * 0.75
    elif z > -0.6:
        line = 0.48 - (-0.3 - z) * 1.6
    else:
        line = max(-0.48, -(-0.6 - z) * 1.2)
    line -= 0.06 * math.sin(side * 4)
    scalp = smooth(y + 0.12 * coarse + 0.05 * fine, line - 0.05, line + 0.09) * (1 - smooth(ears, 0.2, 0.5))
    if z > -0.05 and y < 0.5:
        scalp = 0.0
    blend(albedo, palette[C_HAIR], scalp * amounts[A_SCALP] * (0.85 + 0.4 * fine), 1.0)

    if z > -0.1 and 0.02 < y < 0.5 and side < 0.75:
        along = (side - 0.11) / 0.46
        middle = 0.195 + 0.05 * math.sin(min(max(along * 0.9, -0.2), 1.3) * 2.2) - 0.02 * along
        thickness = amounts[A_BROW_THICKNESS] * (1 - 0.55 * smooth(along, 0.3, 1.05))
        hairs = noise(side * 60 + y * 25, y * 60 - side * 18, 0.0, 17)
        brow = 1 - smooth(abs(y - middle), thickness * 0.45, thickness * 1.15 + 0.012 * hairs)
        brow *= smooth(along, -0.08, 0.10) * (1 - smooth(along, 0.92, 1.08)) * amounts[A_BROW_DENSITY]
        blend(albedo, palette[C_BROW], brow * (0.75 + 0.5 * hairs), 1.0)

    if y < -0.05 and mouth < 0.5:
        paint_beard(x, y, z, lips, palette, amounts, albedo)

    # The shirt: outside the collar.
    radius = math.sqrt(x * x + (z + 0.75) ** 2)
    shirt = smooth(max(radius - 0.98 - 0.10 * smooth(z, -0.7, 0.2), -(y + 2.15)), 0.0, 0.03) * smooth(-y, 1.3, 1.4)
    if shirt > 0:
        blend(albedo, palette[C_SHIRT], shirt, 1 + 0.1 * coarse)
        gloss[0] *= 1 - shirt


@_jit
def paint_beard(x, y, z, lips, palette, amounts, albedo):
    side = abs(x)
    jaw = smooth(-y, 0.50, 0.62) if side < 0.42 else smooth(-y + 0.9 * (side - 0.42), 0.52, 0.66)
    if z < -0.1:
        jaw = smooth(-y + 0.2, 0.35, 0.6)
    if z < -0.45:
        jaw *= smooth(y, -1.0, -0.75) * smooth(z, -0.62, -0.5)
    jaw *= smooth(y, -1.32, -1.12)
    upper_lip = (
        (1 - smooth(abs(y + 0.515 + 0.15 * side * side), 0.02, 0.085))
        * (1 - smooth(side, 0.20, 0.33))
        * smooth(z, 0.1, 0.2)
    )
    chin = smooth(-y, 0.74, 0.82) * (1 - smooth(side, 0.16, 0.36)) * smooth(z, -0.2, 0.0) * smooth(y, -1.25, -1.02)
    beside = (
        (1 - smooth(abs(side - 0.26), 0.01, 0.08))
        * smooth(-y, 0.5, 0.58)
        * (1 - smooth(-y, 1.0, 1.1))
        * smooth(z, 0.0, 0.1)
    )
    hairs = noise(x * 45, y * 22, z * 30, 23)
    stubble = 0.5 * amounts[A_STUBBLE] * max(jaw, upper_lip)
    grown = max(
        amounts[A_MOUSTACHE] * upper_lip,
        amounts[A_GOATEE] * max(upper_lip, chin, beside),
        amounts[A_FULL_BEARD] * max(jaw, upper_lip),
    )
    cover = max(stubble, min(1.0, grown * (0.8 + 0.4 * hairs))) * (1 - lips)
    blend(albedo, palette[C_BEARD], cover, 0.8 + 0.4 * hairs)


@_jit
def paint_eye(place, palette, albedo):
    """`place` is on the unit sphere, +z through the pupil."""
    x, y, z = place[0], place[1], place[2]
    angle = math.acos(min(1.0, max(-1.0, z)))
    around = math.atan2(y, x)
    iris = 1 - smooth(angle, 0.415, 0.47)
    pupil = 1 - smooth(angle, 0.16, 0.20)
    fibres = noise(math.cos(around) * 7, math.sin(around) * 7, angle * 4, 31)
    glint = 1 - smooth(math.sqrt((x + 0.16) ** 2 + (y - 0.17) ** 2), 0.05, 0.1)
    lid_shadow = 0.55 + 0.45 * (1 - smooth(y, 0.12, 0.42))
    for c in range(3):
        color = (
            palette[C_SCLERA, c] * (1 - iris)
            + palette[C_IRIS, c] * (0.65 + 0.8 * fibres) * (1 - 0.6 * smooth(angle, 0.34, 0.43)) * iris
        )
        albedo[c] = (color * (1 - pupil) + 0.004 * pupil + 1.2 * glint) * lid_shadow


@_jit
def light_reaching(world, shadow_map, axes):
    """Share of the key light, in [0, 1], that reaches a point; softened over a few texels."""
    size = shadow_map.shape[0]
    texel = size / (2 * SHADOW_HALF_WIDTH)
    x, y, z = world[0], world[1] + 0.02, world[2]
    sx = size / 2 + (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z) * texel - 0.5
    sy = size / 2 - (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z) * texel - 0.5
    depth = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z + 2
    lit, total = 0.0, 0.0
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            column, row = math.floor(sx) + dx, math.floor(sy) + dy
            weight = max(0.0, 1 - abs(sx - column) * 0.5) * max(0.0, 1 - abs(sy - row) * 0.5)
            total += weight
            outside = column < 0 or row < 0 or column >= size or row >= size
            if outside or depth + 0.012 >= shadow_map[row, column]:
                lit += weight
    return lit / total


@_jit
def noise(x, y, z, seed):
    """Value noise in [0, 1] of unit wavelength."""
    xi, yi, zi = math.floor(x), math.floor(y), math.floor(z)
    fx, fy, fz = smooth(x - xi, 0.0, 1.0), smooth(y - yi, 0.0, 1.0), smooth(z - zi, 0.0, 1.0)
    value = 0.0
    for dx in range(2):
        for dy in range(2):
            for dz in range(2):
                h = (
                    int(xi + dx) * 73856093 ^ int(yi + dy) * 19349663 ^ int(zi + dz) * 83492791 ^ seed * 2654435
                ) & 0xFFFFFFFF
                h = (h ^ 61) ^ (h >> 16)
                h = (h * 9) & 0xFFFFFFFF
                h ^= h >> 4
                h = (h * 0x27D4EB2D) & 0xFFFFFFFF
                h ^= h >> 15
                corner = (h & 0xFFFFFF) / 16777216.0
                value += corner * (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * (fz if dz else 1 - fz)
    return value


@_jit
def smooth(x, low, high):
    t = min(1.0, max(0.0, (x - low) / (high - low)))
    return t * t * (3 - 2 * t)


@_jit
def fill(albedo, color, factor):
    for c in range(3):
        albedo[c] = color[c] * factor


@_jit
def tint(albedo, r, g, b):
    albedo[0] *= r
    albedo[1] *= g
    albedo[2] *= b


@_jit
def blend(albedo, color, cover, factor):
    cover = min(1.0, max(0.0, cover))
    for c in range(3):
        albedo[c] = albedo[c] * (1 - cover) + color[c] * factor * cover
