"""Mutations of an exported model's files, zip and folder, drawn with a seed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL, WEIGHTS, IMAGES = "model.json", "weights.safetensors", "images.safetensors"
Files = dict[str, bytes]


class Raw(str):
    """JSON text that stands as it is where a value would."""


NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 256, 2**15, 2**31, 2**32, 2**53, 2**63, 2**64, 10**12, -(2**40),
    0.0, -0.0, 0.5, -0.5, 1e-300, 1e-12, 1e12, 1e30, 1e300, -1e300, Raw("NaN"), Raw("Infinity"), Raw("-Infinity"),
    Raw("1e999"), Raw("9" * 4000), Raw("9" * 5000), Raw("0." + "1" * 400), "", "x", "nan", "1", "../../etc/passwd",
    "/dev/zero", "a\x1b[31mb", "a\nb", "a\0b", "\u202egnp.exe", "=cmd|' /C calc'!A0", "x" * 300, "x" * 100_000,
    Raw('"\\ud800"'), [], [[]], {}, [1], [1, 2, 3], [0, 0, 0], [1] * 9, [0] * 9, [0.5] * 9, [1e300] * 3, [1] * 100_000,
    Raw("[" * 900 + "]" * 900), Raw("[" * 60_000 + "]" * 60_000), {"a": {"b": {"c": 1}}}, {"x" * 100_000: 1},
]  # fmt: skip


def places_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, each in inside for place in places_in(each, (*at, key)))]


def as_json(values: Any) -> str:
    """JSON in which a `Raw` stands as it is."""
    if isinstance(values, Raw):
        return str(values)
    if isinstance(values, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{as_json(value)}" for key, value in values.items()) + "}"
    if isinstance(values, list):
        return "[" + ",".join(as_json(value) for value in values) + "]"
    return json.dumps(values)


def sealed(files: Files, values: dict[str, Any]) -> Files:
    """`model.json` with right digests, as far as there are such."""
    for name in (WEIGHTS, IMAGES):
        stated = values.get("files")
        if isinstance(stated, dict) and isinstance(stated.get(name), dict) and name in files:
            data = files[name]
            stated[name] |= {"sha256": hashlib.sha256(data).hexdigest()}
            stated[name].setdefault("bytes", len(data))
    text = as_json(values)
    try:
        canonical = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), allow_nan=False)
        values = values | {"digest": hashlib.sha256(canonical.encode()).hexdigest()}
    except (ValueError, RecursionError):
        values = values | {"digest": "0" * 64}
    return files | {MODEL: as_json(values).encode()}


def described(files: Files) -> dict[str, Any]:
    values = json.loads(files[MODEL])
    values.pop("digest")
    return values


def change_values(files: Files, draw: random.Random) -> Files:
    """One to three values of model.json become nasty, vanish or are scaled."""
    values = described(files)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        *way, last = draw.choice([place for place in places_in(values) if place])
        node: Any = values
        for key in way:
            node = node[key]
        how = draw.random()
        if how < 0.7:
            node[last] = draw.choice(NASTY)
        elif how < 0.8:
            del node[last]
        elif how < 0.9 and isinstance(node[last], int | float):
            node[last] = node[last] * draw.choice((-1, 0, 1e-6, 0.5, 3, 1000, 1e9))
        elif isinstance(node, dict):
            node[draw.choice(("hook", "__class__", "x" * 50_000, "\x1b[2J"))] = draw.choice(NASTY)
        else:
            node.append(draw.choice(NASTY))
    return sealed(files, values)


def change_settings(files: Files, draw: random.Random) -> Files:
    """Settings of other methods, steps without end, other sizes of grid, other numbers of structures and atlases."""
    values = described(files)
    kind = draw.randrange(7)
    if kind == 0:
        values["method"], values["settings"] = (
            draw.choice(("unet", "syn", "affine", "brbs", "sst", "jrss", "lt-net", "ist", "os-medseg", "rsegnet")),
            {},
        )
    elif kind == 1:
        names = ("coarse_steps", "fine_steps", "smoothness_weight", "most_paths")
        values["settings"][draw.choice(names)] = draw.choice((0, 1, 10**5, 10**12, 10**18, 1e30))
    elif kind == 2:
        values["method"] = "syn"
        values["settings"] = {"reg_iterations": draw.choice(([10**9, 0, 0], [0, 0, 0], [10**5] * 3, [1]))}
    elif kind == 3:
        edge = [draw.choice((1, 2, 3, 4, 5, 8, 16, 17, 64, 512, 4096, 16384)) for _ in range(3)]
        values["grid"]["shape"] = edge
    elif kind == 4:
        count = draw.choice((1, 3, 5, 300, 4095, 32768))
        values["structures"] = [[f"s{k}", [k + 1]] for k in range(count)]
    elif kind == 5:
        values["num_atlases"] = draw.choice((0, 2, 1000, 2**15))
        values["stored_atlases"] = draw.choice((0, values["num_atlases"]))
    else:
        axis = draw.choice(([1, 0, 0, 0, 1, 0, 0, 0, 0], [0] * 9, [1] * 9, [-1, 0, 0, 0, 1, 0, 0, 0, 1], [1e-9] * 9))
        if draw.random() < 0.5:
            values["reference_direction"] = axis
        else:
            values["grid"]["direction"] = axis
    if draw.random() < 0.3:
        values["calibration"] = None
    return sealed(files, values)


def change_tensors(files: Files, draw: random.Random) -> Files:
    """Tensors of other types, shapes, names and values."""
    import safetensors.torch
    import torch

    name = draw.choice((WEIGHTS, IMAGES))
    tensors = safetensors.torch.load(files[name])
    key = draw.choice(sorted(tensors))
    kind, tensor = draw.randrange(6), tensors[key]
    kinds = (torch.bfloat16, torch.float64, torch.float32, torch.float16, torch.int64, torch.int16, torch.uint8,
             torch.bool, torch.complex64, torch.float8_e4m3fn)  # fmt: skip
    if kind == 0:
        tensors[key] = tensor.to(draw.choice(kinds))
    elif kind == 1:
        shapes = ((), (0,), (1,), (1, 1, 1), (0, 16, 16), (16, 16), (1, 16, 16, 16), (2, 2, 2), (300, 1, 1))
        tensors[key] = torch.zeros(draw.choice(shapes), dtype=tensor.dtype)
    elif kind == 2:
        flat = tensor.clone().flatten()
        odd = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e4, -5.0)
        places = slice(None) if draw.random() < 0.4 else slice(0, 1)
        flat[places] = draw.choice(odd) if flat.is_floating_point() else draw.choice((-1, 32767, -32768, 5, 77))
        tensors[key] = flat.reshape(tensor.shape)
    elif kind == 3:
        del tensors[key]
    elif kind == 4:
        odd_name = draw.choice(
            ("segmentation/", "\x1b[31m", "x" * 10_000, "../a", "atlas_99999_image", "registration/a")
        )
        tensors[odd_name] = tensors.pop(key) if draw.random() < 0.5 else tensor.clone()
    else:
        tensors[key] = tensor.transpose(0, -1).contiguous() if tensor.ndim > 1 else tensor[:0]
    changed = files | {name: safetensors.torch.save(tensors)}
    values = described(files)
    values["files"].pop(name)
    values["files"][name] = {"bytes": len(changed[name])}
    return sealed(changed, values)


def change_header(files: Files, draw: random.Random) -> Files:
    """The header of a file of tensors lies: offsets, shapes, types, its own length."""
    name = draw.choice((WEIGHTS, IMAGES))
    data = files[name]
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    key = draw.choice([key for key in header if key != "__metadata__"])
    kind = draw.randrange(6)
    if kind == 0:
        header[key]["shape"] = draw.choice(([2**62, 4], [10**9, 10**9], [-1], [2**64], ["a"], [[]], None))
    elif kind == 1:
        header[key]["data_offsets"] = draw.choice(([0, 2**60], [5, 3], [-1, 4], [0, 0], None, [0]))
    elif kind == 2:
        header[key]["dtype"] = draw.choice(("BF16", "F8_E5M2", "X", 7, None, "F64", "U64", "BOOL"))
    elif kind == 3:
        header = draw.choice(([], None, "x", {"__metadata__": 1}, {}))
    text = json.dumps(header).encode()
    if kind == 4:
        text = b"[" * 200_000
    size = len(text) if kind != 5 else draw.choice((0, 1, 2**63, len(text) + 1, len(data) - 8, 10**7))
    changed = files | {name: struct.pack("<Q", size) + text + body}
    values = described(files)
    values["files"][name] = {"bytes": len(changed[name])}
    return sealed(changed, values)


def flip_inside(files: Files, draw: random.Random) -> Files:
    """Bytes of a file, with and without right digests."""
    name = draw.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(draw.choice((1, 1, 4, 64))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    if draw.random() < 0.2:
        data = data[: draw.randrange(len(data))]
    changed = files | {name: bytes(data)}
    if name != MODEL and draw.random() < 0.7:
        values = described(files)
        values["files"][name] = {"bytes": len(data)}
        return sealed(changed, values)
    return changed


CONTENTS = {
    "values": change_values, "settings": change_settings, "tensors": change_tensors, "header": change_header,
    "bytes inside": flip_inside,
}  # fmt: skip


def as_zip(files: Files, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


def as_folder(files: Files, path: Path) -> None:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


def flip_zip(files: Files, path: Path, draw: random.Random) -> None:
    """Bytes of the zip: anywhere, or in its list of files."""
    as_zip(files, path)
    data = bytearray(path.read_bytes())
    near_end = draw.random() < 0.6
    for _ in range(draw.choice((1, 1, 2, 8))):
        data[draw.randrange(max(0, len(data) - 260), len(data)) if near_end else draw.randrange(len(data))] = (
            draw.randrange(256)
        )
    how = draw.random()
    if how < 0.15:
        data = data[: draw.randrange(len(data))]
    elif how < 0.25:
        data = bytearray(draw.randbytes(draw.randrange(1, 5000))) + data
    path.write_bytes(data)


def forge_zip(files: Files, path: Path, draw: random.Random) -> None:
    """A zip that lies about sizes, holds others, links, the same twice, far too many, or expands without end."""
    kind = draw.randrange(9)
    if kind == 0:
        info = zipfile.ZipInfo(
            draw.choice(("../evil", "/evil", "model.json/", "weights.pkl", "x" * 60_000, "a\x1b[2J"))
        )
        with zipfile.ZipFile(path, "w") as file:
            for name, data in files.items():
                file.writestr(name, data)
            file.writestr(info, b"x")
    elif kind == 1:
        with zipfile.ZipFile(path, "w") as file:
            for name, data in files.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = draw.choice((0o120777, 0o010644, 0o040755)) << 16
                file.writestr(info, data)
    elif kind == 2:
        with zipfile.ZipFile(path, "w") as file:
            for k in range(draw.choice((5, 2000, 70_000))):
                file.writestr(zipfile.ZipInfo(f"{k}"), b"")
    elif kind == 3:
        with zipfile.ZipFile(path, "w", draw.choice((zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))) as file:
            for name, data in files.items():
                file.writestr(name, data)
    elif kind == 4:
        path.write_bytes(draw.choice((b"", b"PK", b"PK\5\6" + bytes(18), draw.randbytes(3000))))
    else:
        name = draw.choice((WEIGHTS, IMAGES, MODEL))
        size = draw.choice((30_000_000, 700_000_000))
        values = described(files)
        if name != MODEL:
            values["files"][name] = {"bytes": size, "sha256": "0" * 64}
            files = files | {MODEL: sealed({MODEL: b""}, values)[MODEL]}
        path.write_bytes(bomb(files, name, size, draw))


def bomb(files: Files, name: str, size: int, draw: random.Random) -> bytes:
    """A zip in which a file expands to `size` zeros while the list of files says that it is packed hardly at all."""
    packer, packed = zlib.compressobj(9, zlib.DEFLATED, -15), []
    for _ in range(size // 10_000_000):
        packed.append(packer.compress(bytes(10_000_000)))
    packed.append(packer.flush())
    out, entries = io.BytesIO(), []
    for each, data in files.items():
        content = b"".join(packed) if each == name else zlib.compress(data, 9)[2:-4]
        real = size if each == name else len(data)
        stated_packed = draw.choice((size // 2, size // 50, 2**31)) if each == name else len(content)
        stated = draw.choice((real, real, 10, 2**32 - 2)) if each == name else real
        head = (20, 0, 8, 0, 33, zlib.crc32(data), stated_packed, stated, len(each), 0)
        listed = (b"PK\1\2", 20, *head[:8], len(each), 0, 0, 0, 0, 0, out.tell())
        entries.append(struct.pack("<4s6H3I5H2I", *listed) + each.encode())
        out.write(struct.pack("<4s5H3I2H", b"PK\3\4", *head) + each.encode() + content)
    at = out.tell()
    directory = b"".join(entries)
    out.write(directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), at, 0))
    return out.getvalue()


def odd_folder(files: Files, path: Path, draw: random.Random) -> None:
    """A folder with links, pipes, folders or nothing in place of files; a pipe or folder in place of a zip."""
    as_folder(files, path)
    file = path / draw.choice(sorted(files))
    kind = draw.randrange(8)
    file.unlink()
    if kind == 0:
        file.symlink_to("/etc/passwd")
    elif kind == 1:
        file.symlink_to("/dev/zero")
    elif kind == 2:
        os.mkfifo(file)
    elif kind == 3:
        file.mkdir()
    elif kind == 4:
        file.symlink_to(file.name)
    elif kind == 5:
        with file.open("wb") as sparse:
            sparse.truncate(draw.choice((10**7, 3 * 10**9)))
    elif kind == 6:
        shutil.rmtree(path)
        os.mkfifo(path)
    else:
        shutil.rmtree(path)
        path.symlink_to("/dev/zero")


PACKAGES: dict[str, Callable[[Files, Path, random.Random], None]] = {
    "bytes of the zip": flip_zip, "forged zip": forge_zip, "odd folder": odd_folder,
}  # fmt: skip
