"""What is known of real photos: FairFace's table, and measures of landmarks that pose does not change."""

import numpy as np
import pytest
from packing import pack_faces

from train.photos.photo_labels import LABELS, ancestries, face_measures, kept_out, photo_labels
from train.photos.real_photos import RealPhotos


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    smiles, table = pack_faces(folder, count=200)
    return RealPhotos(folder), smiles, table


def test_a_smile_is_measured_from_any_side(packed):
    photos, smiles, _ = packed
    measured = face_measures(photos.landmarks, photos.pose)
    assert np.corrcoef(measured[:, 0], smiles)[0, 1] > 0.9
    assert np.abs(measured.mean(0)).max() < 0.01 and np.abs(measured.std(0) - 1).max() < 0.05
    turned = np.corrcoef(measured[:, 0], photos.pose[:, 0])[0, 1]
    assert abs(turned) < 0.1


def test_labels_are_fairfaces_and_the_landmarks(packed):
    photos, smiles, table = packed
    labels = dict(zip(LABELS, photo_labels(photos, table).T))
    assert labels["Male"][:4].tolist() == [1, 0, 1, 0]
    assert labels["Young"][0] > 0.99 and labels["Young"][1] < 0.01 and labels["Young"][2] > 0.99
    assert labels["Smiling"][smiles.argmax()] > 0.9 and labels["Smiling"][smiles.argmin()] < 0.1
    assert ancestries(photos, table)[:4].tolist() == [1, 2, 1, 2] and not ancestries(photos, None).any()
    unknown = photo_labels(photos, None)
    assert np.isnan(unknown[:, :2]).all() and not np.isnan(unknown[:, 2:]).any()


def test_another_table_is_told(packed, tmp_path):
    (tmp_path / "other.csv").write_text("name,label\na,b\n")
    with pytest.raises(ValueError, match="knows none of these photos"):
        photo_labels(packed[0], tmp_path / "other.csv")


def test_held_photos_and_some_others_are_kept_out(packed):
    photos, *_ = packed
    out = kept_out(photos)
    assert out[photos.held].all() and 0 < out[~photos.held].sum() < 0.15 * len(photos)
    assert np.array_equal(out, kept_out(photos))
