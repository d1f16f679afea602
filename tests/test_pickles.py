"""Hostile and broken files: none executes anything, hangs, or fills the memory; each is one sentence."""

import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from preim3d.pickles import MAGIC, PickleError, read_file


ROOT = Path(__file__).resolve().parent.parent
SECONDS = 10.0


def read(tmp_path: Path, content: bytes):
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    start = time.process_time()
    try:
        return read_file(path)
    finally:
        assert time.process_time() - start < SECONDS


def refused(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(PickleError) as error:
        read(tmp_path, content)
    message = str(error.value)
    assert "\n" not in message.strip() and len(message) < 600 + len(str(tmp_path)), message
    return message


# ----------------------------------------------------------------------------
# What must work.


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_every_kind(legacy, tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    saved = {
        "view": base.view(2, 3, 4).transpose(0, 2)[1:], "shared": base[3:7], "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3), "long": torch.tensor([2**40]), "half": torch.ones(2).half(),
        "bool": torch.tensor([True, False]), "double": torch.ones(1, dtype=torch.float64),
        "nested": [(1, 2.5, None, "ä", {"x": torch.nn.Parameter(torch.ones(2))})], "set": {1, "a"},
        "ordered": OrderedDict(a=1), "number": np.float64(0.25),
    }  # fmt: skip
    torch.save(saved, tmp_path / "saved.pt", _use_new_zipfile_serialization=not legacy)
    found = read_file(tmp_path / "saved.pt")
    for name in ("view", "shared", "scalar", "empty", "long", "half", "bool", "double"):
        assert np.array_equal(found[name], saved[name].numpy()) and found[name].dtype == saved[name].numpy().dtype
    assert np.array_equal(found["nested"][0][4]["x"], [1, 1])
    assert found["nested"][0][:4] == (1, 2.5, None, "ä")
    assert (found["set"], found["ordered"], found["number"]) == ({1, "a"}, {"a": 1}, 0.25)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_of_every_protocol(protocol, tmp_path):
    value = {"a": [1, -5, 70000, 2**31, -(2**70), 1.5, True, None, "x" * 300], "t": (), "tensor": torch.arange(6)}
    found = read(tmp_path, pickle.dumps(value, protocol))
    assert found["a"] == value["a"] and np.array_equal(found["tensor"], range(6))


def test_shared_and_recursive_parts_are_read_once(tmp_path):
    part = {"x": 1}
    loop = [part, part]
    loop.append(loop)
    found = read(tmp_path, pickle.dumps(loop))
    assert found[0] is found[1] and found[2] is found


# ----------------------------------------------------------------------------
# What must be refused by name.


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def proof(tmp_path: Path) -> Path:
    return tmp_path / "executed"


HOSTILE = {
    "posix.system": lambda p: Calls(os.system, f"touch {p}"),
    "builtins.eval": lambda p: Calls(eval, f"open({str(p)!r}, 'w')"),
    "builtins.exec": lambda p: Calls(exec, f"open({str(p)!r}, 'w')"),
    "builtins.getattr": lambda p: Calls(getattr, Calls(__import__, "os"), "system"),
    "builtins.__import__": lambda p: Calls(__import__, "os"),
    "subprocess.Popen": lambda p: Calls(subprocess.Popen, ["touch", str(p)]),
    "io.open": lambda p: Calls(open, str(p), "w"),
    "os.removedirs": lambda p: Calls(os.removedirs, str(p.parent)),
    "torch.serialization.load": lambda p: Calls(torch.load, str(p)),
    "builtins.bytearray": lambda p: Calls(bytearray, 10**10),
    "builtins.map": lambda p: Calls(map, print, [1]),
    "numpy._core.multiarray._reconstruct": lambda p: np.arange(3),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("inside", ["plain", "zip", "legacy", "nested", "persistent", "key"])
def test_a_hostile_call_is_refused_and_not_executed(name, inside, tmp_path):
    thing = HOSTILE[name](proof(tmp_path))
    if inside == "plain":
        content = pickle.dumps({"G_ema": thing})
    elif inside == "key":
        content = pickle.dumps([{(1,): 1}, thing], 2)
    elif inside == "nested":  # where NVIDIA's files have the numbers of a tensor
        content = pickle.dumps(Calls(torch.storage._load_from_bytes, pickle.dumps(thing)))
    elif inside == "persistent":  # within the state of a class that its source text came with
        content = _persistent(thing)
    else:
        buffer = io.BytesIO()
        torch.save({"state_dict": thing}, buffer, _use_new_zipfile_serialization=inside == "zip")
        content = buffer.getvalue()
    message = refused(tmp_path, content)
    if inside != "key":
        assert "refused" in message and name.split(".")[-1] in message, message
    assert not proof(tmp_path).exists()


def _persistent(thing) -> bytes:
    from published import RECONSTRUCT, original_modules

    with original_modules():
        meta = {"type": "class", "version": 6, "module_src": "x", "class_name": "G", "state": {"_modules": thing}}
        return pickle.dumps(Calls(RECONSTRUCT, meta))


@pytest.mark.parametrize("code", [b"i", b"o", b"\x82", b"\x92", b"\x96", b"\x97", b"P", b"S", b"I", b"g", b"p"])
def test_instructions_that_no_weights_use_are_refused(code, tmp_path):
    assert "unknown instruction" in refused(tmp_path, b"\x80\x04" + code + b"os\nsystem\n.")


# ----------------------------------------------------------------------------
# What must cost nothing.


def test_length_fields_cost_no_memory(tmp_path):
    for code, form in ((b"X", "<I"), (b"B", "<I"), (b"\x8d", "<Q"), (b"\x8e", "<Q")):
        for size in (2**31, 2**32 - 1, 10 * 2**30, 2**63, 2**64 - 1):
            if size < 2 ** (8 * struct.calcsize(form)):
                assert "ends too early" in refused(tmp_path, b"\x80\x04" + code + struct.pack(form, size) + b"abc.")
    assert read(tmp_path, b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".") is None


def _bomb(levels: int, open_: bytes, close: bytes) -> bytes:
    """A container that holds the one before it many times, and that one likewise."""
    content = b"\x80\x04" + open_ + close + b"\x94"
    for i in range(levels):
        content += open_ + (b"h" + bytes([i])) * 20 + close + b"\x94"
    return content


def test_bombs_of_references_are_harmless(tmp_path):
    tuples = _bomb(60, b"(", b"t")
    assert read(tmp_path, tuples + b".") is not None
    for tail in (b"}h\x3cNs.", b"\x8f(h\x3c\x90."):  # as the key of a dict, in a set: hashing would take for ever
        assert "key" in refused(tmp_path, tuples + tail)
    assert read(tmp_path, _bomb(60, b"](", b"e") + b".") is not None
    # As the type of numbers, whose text would take for ever.
    refused(tmp_path, tuples + b"cnumpy\ndtype\nh\x3c\x85R.")


def test_copies_of_a_large_list_are_counted(tmp_path):
    content = b"\x80\x04](" + b"N" * 100_000 + b"e\x94" + b"c__builtin__\nset\n\x94"
    assert "steps" in refused(tmp_path, content + b"h\x01h\x00\x85R" * 1000 + b".")
    assert "steps" in refused(tmp_path, b"\x80\x04" + b"N0" * 600_000 + b"N.")


def test_a_tensor_cannot_be_larger_than_its_numbers(tmp_path):
    def tensor(offset, shape, stride):
        storage = Calls(torch.storage._load_from_bytes, _legacy_storage())
        return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, None))

    assert read(tmp_path, tensor(0, (4,), (1,))).tolist() == [1, 1, 1, 1]
    for offset, shape, stride in (
        (0, (10**6, 10**6), (0, 0)), (0, (5,), (1,)), (1, (4,), (1,)), (-1, (1,), (1,)), (0, (-4,), (1,)),
        (0, (4,), (-1,)), (0, (2**70,), (1,)), (2**70, (1,), (1,)), (0, (1,) * 9, (1,) * 9), (0, (1.5,), (1,)),
        (0, (2, 2), (1,)), (0, 4, 1), (0, ("4",), (1,)),
    ):  # fmt: skip
        assert "damaged" in refused(tmp_path, tensor(offset, shape, stride))


def _legacy_storage() -> bytes:
    """The stream in which plain pickles hold a storage: torch.save of four ones, before PyTorch 1.6."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such storages are of the past
        torch.save(torch.ones(4).storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_zips_that_pytorch_does_not_write(tmp_path):
    def archive(**entries) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", entries.pop("compression", zipfile.ZIP_STORED)) as file:
            for name, content in entries.items():
                file.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
        return buffer.getvalue()

    bomb = archive(a__data_pkl=b"\x80\x02N.", a__data__0=bytes(50_000_000), compression=zipfile.ZIP_DEFLATED)
    assert "never writes" in refused(tmp_path, bomb)
    assert "not exactly one data.pkl" in refused(tmp_path, archive(a=bomb))  # a zip in a zip
    assert "not exactly one data.pkl" in refused(tmp_path, archive(a__data_pkl=b"N.", b__data_pkl=b"N."))
    assert "big-endian" in refused(tmp_path, archive(a__data_pkl=b"\x80\x02N.", a__byteorder=b"big"))
    # An entry whose length field promises 10 GB.
    content = bytearray(archive(a__data_pkl=b"\x80\x02N."))
    at = content.rindex(b"PK\1\2")
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    refused(tmp_path, bytes(content))


# ----------------------------------------------------------------------------
# Damage.


@pytest.fixture(scope="module")
def samples() -> list[bytes]:
    """Small files of each kind."""
    value = {"a": torch.arange(5.0), "b": [1, "text", OrderedDict(c=torch.ones(2, 2))]}
    found = [pickle.dumps(value), pickle.dumps(value, 2)]
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
        found.append(buffer.getvalue())
    return found


@pytest.mark.parametrize("kind", range(4))
def test_truncated_files(kind, samples, tmp_path):
    content = samples[kind]
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        refused(tmp_path, content[:length])


@pytest.mark.parametrize("kind", range(4))
def test_flipped_bits(kind, samples, tmp_path):
    rng = np.random.default_rng(kind)
    for _ in range(150):
        content = bytearray(samples[kind])
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            content[place] ^= 1 << rng.integers(8)
        try:
            read(tmp_path, bytes(content))  # a flipped bit in a number is no damage that shows
        except PickleError:
            pass


@pytest.mark.parametrize("seed", range(4))
def test_programs_at_random(seed, tmp_path):
    """Pickles of random instructions with plausible arguments, allowed names among them."""
    rng = np.random.default_rng(seed)
    names = [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
             b"ctorch.storage\n_load_from_bytes\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n",
             b"ctorch.nn.modules.container\nSequential\n"]  # fmt: skip
    plain = [op.code.encode("latin1") for op in pickletools.opcodes if op.arg is None and op.code != "."]
    for _ in range(150):
        content = b"\x80\x04"
        for _ in range(rng.integers(3, 60)):
            draw = rng.random()
            if draw < 0.2:
                content += names[rng.integers(len(names))]
            elif draw < 0.5:
                content += bytes([75, rng.integers(4)]) if draw < 0.3 else b"h" + bytes([rng.integers(6)])
            else:
                content += plain[rng.integers(len(plain))]
        try:
            read(tmp_path, content + b".")
        except PickleError:
            pass


def test_other_files(tmp_path):
    for content in (b"", b"\0" * 100, b"\x93NUMPY", b"<html>", bytes(range(256)), pickle.dumps(MAGIC, 2)):
        refused(tmp_path, content)


@pytest.mark.slow
def test_memory_stays_small():
    """All of the above in one process of its own: it never takes a gigabyte."""
    code = f"""
import resource
import conftest, pytest  # with all libraries, whose size is not the files' doing
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", {str(__file__)!r}, "-k", "not memory"])
taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before
assert status == 0 and taken < 1, (status, taken)
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
