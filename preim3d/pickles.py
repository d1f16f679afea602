"""Pickles and torch.save files -> plain data, without executing anything that they say.

A pickle is a program for a small stack machine; Python's own machine imports and calls whatever it names. This one
knows tensors, plain containers and a fixed list of names. Classes become `Record`s (a name and a dict of
attributes), the source text that NVIDIA's files carry stays text, and any other name is refused. No torch is needed.

    read_file(path)   a pickle, or what torch.save writes (zip or legacy) -> numpy arrays, dicts, lists, Records
"""

import mmap
import struct
import zipfile
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class PickleError(ValueError):
    """The file is damaged, or names something that is not on the list; one sentence for the user."""


class Global(NamedTuple):
    """A name that a pickle refers to. It is never imported."""

    module: str
    name: str


@dataclass
class Record:
    """An object of a class that we do not have: what it was called, and its attributes."""

    class_name: str
    state: dict = field(default_factory=dict)


# How the file may build its data ...
ORDERED_DICT = Global("collections", "OrderedDict")
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
LOAD_FROM_BYTES = Global("torch.storage", "_load_from_bytes")
PERSISTENT_OBJECT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")
NUMPY_SCALARS = {Global("numpy.core.multiarray", "scalar"), Global("numpy._core.multiarray", "scalar")}
NUMPY_DTYPE = Global("numpy", "dtype")
ENCODE = Global("_codecs", "encode")
SETS = {Global("__builtin__", "set"), Global("builtins", "set")}
EASY_DICT = Global("dnnlib.util", "EasyDict")
CALLABLE = {
    ORDERED_DICT, EASY_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, LOAD_FROM_BYTES, PERSISTENT_OBJECT, NUMPY_DTYPE,
    *NUMPY_SCALARS, ENCODE, *SETS,
}  # fmt: skip
# ... the classes that become records ...
CLASSES = {
    Global("training.volumetric_rendering.renderer", "ImportanceRenderer"),
    Global("training.volumetric_rendering.ray_marcher", "MipRayMarcher2"),
    Global("training.volumetric_rendering.ray_sampler", "RaySampler"),
    Global("training.triplane", "OSGDecoder"),
    Global("torch.nn.modules.container", "Sequential"),
    Global("torch.nn.modules.activation", "Softplus"),
}
# ... and the types of tensors. numpy has no bfloat16: such files are refused.
STORAGES = {
    Global("torch", f"{name}Storage"): np.dtype(dtype)
    for name, dtype in {
        "Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1",
        "Byte": "u1", "Bool": "?",
    }.items()
}  # fmt: skip
ALLOWED = CALLABLE | CLASSES | STORAGES.keys()

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy torch.save file,
LEGACY_PROTOCOL = 1001  # and the second
# The largest published file takes less than 100,000 steps; beyond a million, a file is made to fill time or memory.
MOST_STEPS = 1_000_000
MOST_AXES = 8
ENCODED_PER_STEP = 100  # letters; published files encode numbers only


class Meter:
    """What a file may still cost; shared by the pickles within a pickle."""

    def __init__(self):
        self.left = MOST_STEPS

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise PickleError(f"takes more than {MOST_STEPS} steps to read, which no weights need; it is refused.")


@dataclass
class Storage:
    """The numbers of one or more tensors; a legacy file's come after its pickles."""

    dtype: np.dtype
    count: int
    data: memoryview | None = None

    def array(self) -> np.ndarray:
        if self.data is None or len(self.data) < self.count * self.dtype.itemsize:
            raise ValueError("the numbers of a tensor are missing")
        return np.frombuffer(self.data, self.dtype, self.count)


class LazyTensor(NamedTuple):
    """A view of a storage, in elements, until the storage is filled."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> np.ndarray:
        if len(self.shape) != len(self.stride) or min((0, self.offset, *self.shape, *self.stride)) < 0:
            raise ValueError("a tensor of impossible shape")
        count = np.prod([float(n) for n in self.shape])
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride))
        # A tensor larger than its numbers would repeat them: a few bytes could ask for any amount of memory.
        if count > self.storage.count or (count and last >= self.storage.count):
            raise ValueError("a tensor larger than its numbers")
        flat = self.storage.array()[self.offset :]
        return np.lib.stride_tricks.as_strided(
            flat, self.shape, [step * flat.itemsize for step in self.stride], writeable=False
        )


def read_file(path: Path) -> Any:
    """What a file holds: dicts, lists, tuples, sets, texts, numbers, None, arrays in place of tensors, Records.

    Arrays are read-only views of the file where it is not a zip; dicts of any kind become dicts.

    Raises:
        PickleError: the file is no pickle, is damaged, or names something else.
        OSError: it cannot be read.
    """
    if path.stat().st_size == 0:
        raise PickleError(f"{path} is empty.")
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if data[:4] == b"PK\3\4":
            found = _read_zip(path)
        else:
            found = _read_stream(data, Meter())
        return _resolved(found, {})
    except PickleError as error:
        raise PickleError(f"{path} {error}") from None
    except (
        AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OverflowError, RecursionError, TypeError,
        ValueError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise PickleError(f"{path} is damaged or is no file of PyTorch's ({str(error)[:200]}).") from None


# ----------------------------------------------------------------------------
# The three containers.


def _read_zip(path: Path) -> Any:
    """torch.save since 1.6: a zip of data.pkl and one stored entry per storage."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        # PyTorch never compresses: what unpacks to more than the file itself is no file of PyTorch's.
        sizes = [info.file_size for info in entries.values()]
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in entries.values())
        if not stored or sum(sizes) > path.stat().st_size:
            raise PickleError("is a compressed or overlapping zip, which PyTorch never writes; it is refused.")
        pickles = [name for name in entries if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise PickleError("is a zip, but not of PyTorch's: there is not exactly one data.pkl in it.")
        folder = pickles[0].removesuffix("data.pkl")
        order = folder + "byteorder"
        if order in entries and archive.read(order) != b"little":
            raise PickleError("was saved on a big-endian machine; save it again on another.")
        storages: dict[str, Storage] = {}

        def storage(pid) -> Storage:
            kind, of, key, _, count = pid
            if kind != "storage":
                raise ValueError("an unknown kind of reference")
            if _plain(key) not in storages:
                storages[key] = _storage(of, count)
                storages[key].data = memoryview(archive.read(f"{folder}data/{key}"))
            return storages[key]

        return Machine(memoryview(archive.read(pickles[0])), Meter(), ALLOWED, storage).run()


def _read_stream(data: memoryview, meter: Meter, allowed: Set[Global] = ALLOWED) -> Any:
    """A plain pickle, or torch.save's legacy stream."""
    machine = Machine(data, meter, allowed)
    first = machine.run()
    return _read_legacy(machine) if isinstance(first, int) and first == MAGIC else first


def _read_legacy(machine: "Machine") -> Any:
    """torch.save before 1.6, after its magic number: four more pickles, then each storage: a count and its numbers."""
    storages: dict[str, Storage] = {}

    def reference(pid) -> Storage | Global:
        if pid[0] == "module":  # a class by name with its source text
            return pid[1]
        kind, of, key, _, count, view = pid
        if kind != "storage" or view is not None:
            raise ValueError("an unknown kind of reference")
        return storages.setdefault(_plain(key), _storage(of, count))

    machine.reference, data = reference, machine.data
    if machine.run() != LEGACY_PROTOCOL:
        raise ValueError("an unknown version of PyTorch's legacy format")
    if machine.run().get("little_endian") is not True:
        raise PickleError("was saved on a big-endian machine; save it again on another.")
    found, keys = machine.run(), machine.run()
    for key in keys:
        storage = storages[_plain(key)]
        (count,) = struct.unpack_from("<q", data, machine.place)
        size = count * storage.dtype.itemsize
        machine.place += 8
        if count != storage.count or machine.place + size > len(data):
            raise ValueError("the numbers of a tensor are missing")
        storage.data = data[machine.place : machine.place + size]
        machine.place += size
    return found


def _storage(of: Any, count: Any) -> Storage:
    if not isinstance(of, Global) or not isinstance(count, int) or count < 0:
        raise ValueError("a storage of nothing")
    return Storage(STORAGES[of], count)


def _resolved(found: Any, done: dict[int, Any]) -> Any:
    """`found` with arrays in place of tensors. What occurs twice is converted once, so shared parts cost nothing."""
    if isinstance(found, LazyTensor):
        return found.array()
    if not isinstance(found, dict | list | tuple | Record):
        return found
    if id(found) not in done:
        # Containers first, contents later: a container may hold itself.
        if isinstance(found, Record):
            done[id(found)] = found
            found.state = _resolved(found.state, done)
        elif isinstance(found, dict):
            new = done[id(found)] = {}
            new.update((key, _resolved(value, done)) for key, value in found.items())
        elif isinstance(found, list):
            new = done[id(found)] = []
            new.extend(_resolved(value, done) for value in found)
        else:
            done[id(found)] = tuple(_resolved(value, done) for value in found)
    return done[id(found)]


# ----------------------------------------------------------------------------
# The stack machine.

MARK = object()


class Machine:
    """Runs one pickle after the other from `data`; `place` is where the next begins."""

    def __init__(
        self,
        data: memoryview,
        meter: Meter,
        allowed: Set[Global],
        reference: Callable[[tuple], Any] | None = None,  # What a persistent id stands for.
    ):
        self.data, self.meter, self.allowed, self.reference = data, meter, allowed, reference
        self.place = 0

    def run(self) -> Any:
        """The object of the pickle at `place`."""
        self.stack: list = []
        self.memo: dict[int, Any] = {}
        while True:
            self.meter.spend(1)
            code = bytes(self._take(1))
            if code == b".":
                return self.stack.pop()
            if code not in OPERATIONS:
                raise ValueError(f"unknown instruction {code!r} at byte {self.place - 1}")
            OPERATIONS[code](self)

    def _take(self, count: int) -> memoryview:
        """The next bytes, which must be there: a length field alone never costs memory."""
        if count < 0 or self.place + count > len(self.data):
            raise ValueError(f"it ends too early, at byte {len(self.data)}")
        self.place += count
        return self.data[self.place - count : self.place]

    def _number(self, form: str) -> int | float:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        # Names are short: a long line is no name.
        window = bytes(self.data[self.place : self.place + 256])
        line = window[: window.index(b"\n")]
        self.place += len(line) + 1
        return line.decode("ascii")

    def _text(self, form: str) -> str:
        return str(self._take(self._number(form)), "utf-8", "surrogatepass")

    def _bytes(self, form: str) -> memoryview:
        return self._take(self._number(form))

    def _since_mark(self) -> list:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("no mark")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def name(self, module: str, name: str) -> None:
        found = Global(module, name)
        if found not in self.allowed:
            called = f"{module[:60]}.{name[:60]}"
            raise PickleError(f"names {called}, which no weights need; it is refused and nothing was executed.")
        self.push(found)

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no text")
        self.name(module, name)

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items of what is no dict")
        for key, value in zip(items[::2], items[1::2]):
            target[_plain(key)] = value

    def append(self, items: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items of what is no list")
        self.stack[-1].extend(items)

    def add(self, items: list) -> None:
        if not isinstance(self.stack[-1], set):
            raise ValueError("items of what is no set")
        self.stack[-1].update(_plain(item) for item in items)

    def refer(self) -> None:
        pid = self.stack.pop()
        if self.reference is None or not isinstance(pid, tuple):
            raise ValueError("a reference to nothing")
        self.push(self.reference(pid))

    def new(self) -> None:
        arguments, of = self.stack.pop(), self.stack.pop()
        if arguments != ():
            raise ValueError("a class with arguments")
        if not isinstance(of, Global):
            raise ValueError("an object of what is no class")
        if of == EASY_DICT:
            self.push({})
        elif of in CLASSES:
            self.push(Record(of.name))
        else:
            raise ValueError("an object of what is no class")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.dtype):  # (version, byte order, ...)
            if state[1] not in ("<", "|"):
                raise ValueError("big-endian numbers")
        elif isinstance(target, Record) and isinstance(state, dict):
            self.meter.spend(len(state))
            target.state.update(state)
        elif isinstance(target, dict) and isinstance(state, dict):
            # The attributes of a dict: torch.save notes there the versions of modules, which nobody needs.
            pass
        else:
            raise ValueError("a state of what has none")

    def call(self) -> None:
        arguments, of = self.stack.pop(), self.stack.pop()
        if not isinstance(of, Global) or of not in CALLABLE or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        self.push(self._made(of, arguments))

    def _made(self, of: Global, arguments: tuple) -> Any:
        """What the function would have made, as plain data. A file may call it on one value often, so copies cost."""
        if of in (ORDERED_DICT, EASY_DICT):
            pairs = arguments[0] if arguments else []
            self.meter.spend(len(pairs))
            return {_plain(key): value for key, value in pairs}
        if of == REBUILD_TENSOR:
            storage, offset, shape, stride = arguments[:4]
            if len(shape) > MOST_AXES or len(stride) > MOST_AXES:
                raise ValueError("a tensor of too many axes")
            if not isinstance(storage, Storage) or not all(isinstance(n, int) for n in (offset, *shape, *stride)):
                raise ValueError("a tensor of no numbers")
            return LazyTensor(storage, offset, tuple(shape), tuple(stride))
        if of == REBUILD_PARAMETER:
            if not isinstance(arguments[0], LazyTensor):
                raise ValueError("a parameter that is no tensor")
            return arguments[0]
        if of == LOAD_FROM_BYTES:
            storage = _read_stream(memoryview(arguments[0]), self.meter, STORAGES.keys())
            if not isinstance(storage, Storage):
                raise ValueError("a storage that is none")
            return storage
        if of == PERSISTENT_OBJECT:
            meta = arguments[0]
            if (
                meta["type"] != "class"
                or not isinstance(meta["class_name"], str)
                or not isinstance(meta["state"], dict)
            ):
                raise ValueError("an unknown kind of persistent object")
            return Record(meta["class_name"], meta["state"])
        if of == NUMPY_DTYPE:
            if arguments[0] not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"):
                raise ValueError("numbers of an unknown type")
            return np.dtype(arguments[0])
        if of in NUMPY_SCALARS:
            dtype, content = arguments
            if not isinstance(dtype, np.dtype) or len(content) != dtype.itemsize:
                raise ValueError("a number of the wrong length")
            return np.frombuffer(content, dtype)[0].item()
        if of == ENCODE:  # protocol 2 has no bytes
            text, encoding = arguments
            if encoding != "latin1":
                raise ValueError("an unknown encoding")
            self.meter.spend(len(text) // ENCODED_PER_STEP)
            return text.encode("latin1")
        items = arguments[0] if arguments else []  # of a set
        self.meter.spend(len(items))
        return {_plain(item) for item in items}


def _plain(key: Any) -> Any:
    """Keys are texts and numbers: hashing nested tuples can take for ever."""
    if not isinstance(key, str | int | float | None):
        raise ValueError("a key that is neither text nor number")
    return key


# Instruction -> what it does; the names are those of the pickle protocol.
OPERATIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m._take(1),  # PROTO
    b"\x95": lambda m: m._take(8),  # FRAME
    b"(": lambda m: m.push(MARK),  # MARK
    b"0": lambda m: m.stack.pop(),  # POP
    b"N": lambda m: m.push(None),  # NONE
    b"\x88": lambda m: m.push(True),  # NEWTRUE
    b"\x89": lambda m: m.push(False),  # NEWFALSE
    b"J": lambda m: m.push(m._number("<i")),  # BININT
    b"K": lambda m: m.push(m._number("<B")),  # BININT1
    b"M": lambda m: m.push(m._number("<H")),  # BININT2
    b"\x8a": lambda m: m.push(int.from_bytes(m._bytes("<B"), "little", signed=True)),  # LONG1
    b"G": lambda m: m.push(m._number(">d")),  # BINFLOAT
    b"\x8c": lambda m: m.push(m._text("<B")),  # SHORT_BINUNICODE
    b"X": lambda m: m.push(m._text("<I")),  # BINUNICODE
    b"\x8d": lambda m: m.push(m._text("<Q")),  # BINUNICODE8
    b"C": lambda m: m.push(m._bytes("<B")),  # SHORT_BINBYTES
    b"B": lambda m: m.push(m._bytes("<I")),  # BINBYTES
    b"\x8e": lambda m: m.push(m._bytes("<Q")),  # BINBYTES8
    b")": lambda m: m.push(()),  # EMPTY_TUPLE
    b"\x85": lambda m: m.tuple_of(1),  # TUPLE1
    b"\x86": lambda m: m.tuple_of(2),  # TUPLE2
    b"\x87": lambda m: m.tuple_of(3),  # TUPLE3
    b"t": lambda m: m.push(tuple(m._since_mark())),  # TUPLE
    b"]": lambda m: m.push([]),  # EMPTY_LIST
    b"a": lambda m: m.append([m.stack.pop()]),  # APPEND
    b"e": lambda m: m.append(m._since_mark()),  # APPENDS
    b"}": lambda m: m.push({}),  # EMPTY_DICT
    b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.set_items(m._since_mark()),  # SETITEMS
    b"\x8f": lambda m: m.push(set()),  # EMPTY_SET
    b"\x90": lambda m: m.add(m._since_mark()),  # ADDITEMS
    b"q": lambda m: m.remember(m._number("<B")),  # BINPUT
    b"r": lambda m: m.remember(m._number("<I")),  # LONG_BINPUT
    b"\x94": lambda m: m.remember(len(m.memo)),  # MEMOIZE
    b"h": lambda m: m.push(m.memo[m._number("<B")]),  # BINGET
    b"j": lambda m: m.push(m.memo[m._number("<I")]),  # LONG_BINGET
    b"c": lambda m: m.name(m._line(), m._line()),  # GLOBAL
    b"\x93": Machine.stack_name,  # STACK_GLOBAL
    b"Q": Machine.refer,  # BINPERSID
    b"R": Machine.call,  # REDUCE
    b"\x81": Machine.new,  # NEWOBJ
    b"b": Machine.build,  # BUILD
}
