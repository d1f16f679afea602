"""From one portrait photo to an editable 3D head.

photo ── align ──> crop ── encoder ──> w ── directions ──> w_edit ── generator ──> planes ──┬─ views ──> 3x3 sheet
                     │                     what edits draw ┴──────┐                    │    └─ density ─> mesh ──> GLB
                     └──── detail ──> what the planes are tuned by ┴────────────────────┘

align.py       photo -> upright crop (PIL, 512 px) and the camera that took the photo
photo.py       any picture file -> an upright photo, or why not
finder.py      photo -> faces, five points each, roughly
landmarks.py   its network: a box -> five points and whether it is a face
face_mesh.py   a box -> 120 points, yaw, pitch, the person: what align.py reads more finely
fit.py         five points -> where the crop lies
encoder.py     crop -> w [B, num_ws, w_dim]
feedback.py    w and what its picture lacks -> a w nearer to the photo
detail.py      what w cannot say of the photo -> a tuning of the planes, in one pass
irse.py        the IR-SE-50 body of the encoder and of the identity network
directions.py  strengths -> an offset of w, and of the planes of tuned heads
style_channels.py  strengths -> an offset of the styles that w becomes (StyleSpace), to compare with
style_flow.py  w, attributes and strengths -> an edited w (StyleFlow), to compare with
strengths.py   `smile=2` -> a checked number
generator.py   w -> planes [B, 3, C, H, W] -> images [B, 3, H, W]
back.py        w -> crown and back of the head, which no photo shows
stylegan2.py   its mapping and its modulated convolutions
renderer.py    planes and rays -> features, depth, density
camera.py      yaw, pitch <-> camera [25]; rays; the pose grid; the orbit
mesh.py        density -> surface -> colours -> GLB, OBJ, PLY
film.py        views -> labelled sheet, orbit video
pipeline.py    all of it, step by step, as one diffusers pipeline
turntable.py   frames from all around, as one picture; depth pictures
edits.py       a list of edits with undo, and what must not change with them
recipe.py      latent, camera and edits as a small file
inversion.py   crop -> a head that looks more like the person, step by step
tuning.py      what the planes of one head are tuned by, and how such heads are edited
identity.py    crop -> who it is, as an embedding (dlib's face network)
judge.py       how alike photo and head are, by identity.py; what an edit did, by that and reader.py
reader.py      picture of a head -> attributes
efficientnet.py  its body
page/          the page's rooms, which alone know Gradio: answers, GPU functions, endpoints, widgets, a session's state
device.py      where networks run, and how exactly
files.py       a file is written whole or not at all
weights.py     where weights come from, and whether they are whole
__main__.py    the command line
batch.py       many photos, on many machines: what is done, and where results go
sources.py     a folder, a list or tars -> the photos of a shard
workers.py     photos -> what becomes of each, by several processes
results.py     a photo -> the six files of its head
bench.py       how fast it is on this machine; bench_full_size.py the same for the published size
convert.py     the published files -> a weights folder
pickles.py     what is in a pickle, without executing it

    from preim3d import Preim3DPipeline
    head = Preim3DPipeline.from_pretrained("weights/faces")("portrait.jpg", {"smile": 2})
"""

import os
from importlib import import_module


# How often a thread looks before it sleeps while it waits for others; GNU's OpenMP reads it as torch is loaded. By
# itself it looks 300,000 times, and so can keep a core from those that it waits for: beside a busy program of another
# session, such as a browser, a photo took 105 s on two cores. Nothing else running, nine views take .77 s, not .71.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Public name -> room. Imported when first asked for: torch and diffusers take seconds, and most mistakes need neither.
_ROOM_OF = {
    "Preim3DPipeline": "pipeline",
    "Preim3DOutput": "pipeline",
    "load_photo": "photo",
    "PhotoError": "photo",
    "FaceAligner": "align",
    "PortraitEncoder": "encoder",
    "IdentityNetwork": "irse",
    "Directions": "directions",
    "TriPlaneGenerator": "generator",
    "WeightsError": "weights",
}
__all__ = list(_ROOM_OF)


def __getattr__(name: str):
    if name in _ROOM_OF:
        return getattr(import_module(f"preim3d.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
