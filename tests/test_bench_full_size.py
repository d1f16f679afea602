"""The full-size benchmark on small networks: both ways give the same views, and every figure is there."""

import functools

import pytest
import torch

from preim3d import bench_full_size
from preim3d.bench_full_size import ORIGINAL, _measure, full_size_table
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator


@pytest.mark.slow
def test_both_ways_give_the_same_views_and_a_table(monkeypatch):
    small = functools.partial(
        TriPlaneGenerator, plane_resolution=16, channel_base=256, channel_max=16, image_resolution=32,
        ray_resolution=16, superresolution_input=16, superresolution_blocks=({"in": 32, "out": 8, "up": True},),
        coarse_samples=6, fine_samples=6,
    )  # fmt: skip
    body = functools.partial(PortraitEncoder, units=(1, 1, 1, 1), depths=(16, 16, 16, 16), pool=2, feature_dim=8)
    monkeypatch.setattr(bench_full_size, "TriPlaneGenerator", small)
    monkeypatch.setattr(bench_full_size, "PortraitEncoder", body)
    monkeypatch.setattr(bench_full_size, "GRID", 16)
    monkeypatch.setattr(bench_full_size, "CHUNK", 1000)
    monkeypatch.setattr(bench_full_size, "PRODUCT", 64)
    rows = {way: _measure(way, "cpu") for way in (ORIGINAL, "float32", "bfloat16", "bfloat16, fast")}
    views = [row.pop("views") for row in rows.values()]
    stages = {way: row.pop("stages") for way, row in rows.items() if way != ORIGINAL}
    for told in stages.values():
        assert all(stage["s"] > 0 and stage["GFLOP"] > 0 for stage in told.values())
        assert told["view"]["GFLOP"] > told["of it: super-resolution"]["GFLOP"]
        assert told["the limit: a large matrix product"]["GFLOP"] == 2 * 64**3 / 1e9
    assert views[0].shape == (9, 3, 32, 32) and torch.equal(views[0], views[1])
    assert 0 < (views[2] - views[1]).abs().max() < 0.2 and not torch.equal(views[2], views[3])
    assert all(value > 0 for row in rows.values() for value in row.values())
    table = full_size_table({"rows": rows, "stages": stages, "machine": "a machine"})
    assert table.count("\n") == 15 and "nine views, s" in table and "view of kept planes, s" in table
