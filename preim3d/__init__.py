"""One portrait photo -> a 3D head that can be turned and edited (PREIM3D, Li et al., CVPR 2023).

    photo ── align ──> crop ── encoder ──> w ── directions ──> w_edit ── generator ──> planes ──┬─ views ──> 3x3 sheet, orbit video
                                                                                                └─ density ─> mesh ──> GLB

The rooms, in that order: align, encoder (on irse), directions, generator (on stylegan2, renderer, camera), film, mesh.
`pipeline` walks through them, `weights` finds what they need on disk, `convert` imports published checkpoints.
"""

import importlib


# Public name -> room. Imported when first asked for: torch and diffusers take seconds to import.
_ROOMS = {
    "FaceAligner": "align",
    "PhotoError": "align",
    "load_photo": "align",
    "PortraitEncoder": "encoder",
    "IdentityNetwork": "irse",
    "Directions": "directions",
    "TriPlaneGenerator": "generator",
    "Preim3DPipeline": "pipeline",
    "Preim3DOutput": "pipeline",
}
__all__ = list(_ROOMS)


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module 'preim3d' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
