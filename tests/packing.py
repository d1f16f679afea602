"""A small file of packed photos (`train.photos.real_photos`) with faces that differ in what landmarks measure."""

import cv2
import numpy as np


def pack_faces(folder, count=40, seed=0):
    """`count` photos of one colour each, FairFace's names, landmarks of a made-up face that smiles by the number
    returned for each; the last quarter is held back. Gives the smiles [count] and the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    smiles = rng.standard_normal(count)
    base = np.random.default_rng(1).uniform(-1, 1, (120, 3)) * [60, 80, 30]
    base[132 // 4], base[356 // 4] = (-60, 0, -20), (60, 0, -20)
    base[4 // 4] = 0, 10, 40  # the tip of the nose: what lies above it is still
    base[76 // 4], base[292 // 4], base[12 // 4], base[16 // 4] = (-20, 45, 15), (20, 45, 15), (0, 40, 20), (0, 50, 20)
    base[80 // 4], base[88 // 4], base[152 // 4], base[8 // 4] = (-5, 44, 18), (-5, 46, 18), (0, 80, 10), (0, -40, 25)
    landmarks = np.tile(base, (count, 1, 1)) + rng.normal(0, 0.3, (count, 120, 3))
    landmarks[:, 76 // 4] += smiles[:, None] * [-3, -3, 0]
    landmarks[:, 292 // 4] += smiles[:, None] * [3, -3, 0]
    yaw = rng.uniform(-0.5, 0.5, count)
    turn = np.zeros((count, 3, 3))
    turn[:, 0, 0] = turn[:, 2, 2] = np.cos(yaw)
    turn[:, 0, 2], turn[:, 2, 0], turn[:, 1, 1] = np.sin(yaw), -np.sin(yaw), 1
    landmarks = landmarks @ turn * rng.uniform(0.8, 1.2, (count, 1, 1)) + 128

    files = []
    for smile in smiles:
        bgra = np.zeros((256, 256, 4), np.uint8)
        bgra[..., :3] = np.clip((40, 90, 130 + 50 * smile), 0, 255)
        bgra[30:, 50:200, 3] = 255
        files.append(cv2.imencode(".webp", bgra, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].ravel())
    np.savez(
        folder / "photos.npz", blob=np.concatenate(files), ends=np.cumsum([len(file) for file in files]),
        corners=np.tile([[0, 0], [256, 0], [256, 256], [0, 256]], (count, 1, 1)).astype(np.float32),
        lm=landmarks.astype(np.float32), pose=np.stack([yaw, np.zeros(count)], 1).astype(np.float32),
        full=np.arange(count) % 2 == 0, held=np.arange(count) >= 0.75 * count,
        name=np.array([f"ff/{i}" for i in range(count)]),
    )  # fmt: skip
    table = folder / "labels.csv"
    ages, sexes, groups = ("20-29", "more than 70", "03-Sep"), ("Male", "Female"), ("Black", "White")
    rows = (f"train/{i}.jpg,{ages[i % 3]},{sexes[i % 2]},{groups[i % 2]}" for i in range(count))
    table.write_text("file,age,gender,race\n" + "\n".join(rows) + "\n")
    return smiles, table
