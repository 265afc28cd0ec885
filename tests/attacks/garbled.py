"""Mutations of files' bytes for fuzzing: of any bytes, of text, and of what some formats' headers say."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from attacks.mutations import NASTY, as_json, places_in

Mutator = Callable[[bytes, Random], bytes]

MOST_BYTES = 200_000  # of an input; repeated chunks make it no longer
WORDS = (
    b"", b"0", b"-0", b"1", b"-1", b"2", b"3", b"4", b"255", b"256", b"32768", b"65536", b"2147483647", b"2147483648",
    b"-2147483649", b"4294967295", b"4294967296", b"9223372036854775807", b"18446744073709551616", b"9" * 400,
    b"9" * 5000, b"1e-320", b"1e-30", b"1e30", b"1e308", b"1e999", b"-1e999", b"nan", b"NaN", b"inf", b"-inf", b"0x10",
    b"1_000", b"1,5", b"1.5.2", b"true", b"None", b"%d", b"%s%n", b"../../etc/passwd", b"/dev/zero", b"LIST", b"LOCAL",
    b"scan.raw", b"\x1b[2J", b"\r\n", b"\n\n", b"\0", b"\xff\xfe", b"\xe2\x80\xae", b"x" * 3000, b"=1+1", b"\\",
    b'"', b"'", b"#", b":", b"&a", b"*a", b"!!python/object:os.system", b"{", b"}", b"[" * 2000, b"- - - -", b"|", b">",
    b"\xc2\x85", b"\xe2\x80\xa8", b"\xd9\xa3", b"\xc2\xb2", b"<<", b"~", b"---", b"...", b"\t",
)  # fmt: skip
INTEGERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62,
            2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-30, 1e-6, 1e6, 1e20, 3e38, -3e38, float("nan"), float("inf"),
         -float("inf"), 347.0, 352.0, 353.0, 1e9)  # fmt: skip
DELIMITERS = b" \t\r\n,;:=()[]{}\"'\\|^"


def flipped(data: bytes, draw: Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def longer(data: bytes, draw: Random) -> bytes:
    return data + draw.choice((bytes(1), bytes(4096), draw.randbytes(draw.choice((1, 3, 100)))))


def chunk_gone(data: bytes, draw: Random) -> bytes:
    start, length = _chunk(data, draw)
    return data[:start] + data[start + length :]


def chunk_repeated(data: bytes, draw: Random) -> bytes:
    start, length = _chunk(data, draw)
    times = draw.choice((1, 1, 2, 100))
    return (data[:start] + data[start : start + length] * times + data[start:])[:MOST_BYTES]


def chunk_moved(data: bytes, draw: Random) -> bytes:
    start, length = _chunk(data, draw)
    rest = data[:start] + data[start + length :]
    at = draw.randrange(len(rest) + 1)
    return rest[:at] + data[start : start + length] + rest[at:]


def chunk_of_one_value(data: bytes, draw: Random) -> bytes:
    start, length = _chunk(data, draw)
    return data[:start] + bytes([draw.choice((0, 255, 65, 10))]) * length + data[start + length :]


def number_written(data: bytes, draw: Random) -> bytes:
    """A number of 1, 2, 4 or 8 bytes, of either order, at an even place."""
    kind = draw.choice("bhiqfd")
    size = struct.calcsize(kind)
    if len(data) < size:
        return data
    at = draw.randrange(len(data) - size + 1)
    at -= at % min(size, 4)
    return data[:at] + _number(kind, draw.choice("<>"), draw) + data[at + size :]


def word_replaced(data: bytes, draw: Random) -> bytes:
    """A word of text, as far as the bytes are text."""
    end = min(len(data), draw.choice((200, 2000, len(data) + 1)))
    if not end:
        return draw.choice(WORDS)
    at = draw.randrange(end)
    start = stop = at
    while start > 0 and data[start - 1] not in DELIMITERS and at - start < 200:
        start -= 1
    while stop < len(data) and data[stop] not in DELIMITERS and stop - at < 200:
        stop += 1
    return data[:start] + draw.choice(WORDS) + data[stop:]


def line_changed(data: bytes, draw: Random) -> bytes:
    """A line of the first ones is gone, there twice, elsewhere, or joined to the next one."""
    lines = data.split(b"\n")
    most = min(len(lines), 60)
    at, other = draw.randrange(most), draw.randrange(most)
    how = draw.randrange(5)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(other, lines[at])
    elif how == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif how == 3:
        lines[at] = b"  " + lines[at]
    else:
        lines[at : at + 2] = [b"".join(lines[at : at + 2])]
    return b"\n".join(lines)


ANY: tuple[Mutator, ...] = (
    flipped, flipped, cut, longer, chunk_gone, chunk_repeated, chunk_moved, chunk_of_one_value, number_written,
    number_written,
)  # fmt: skip
TEXT: tuple[Mutator, ...] = (word_replaced, word_replaced, word_replaced, line_changed, line_changed)


def spliced(data: bytes, other: bytes, draw: Random) -> bytes:
    """The beginning of one input and the end of another one."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + other[min(len(other), draw.choice((at, draw.randrange(len(other) + 1)))) :]


def inside_gzip(mutators: Sequence[Mutator]) -> Mutator:
    """What is compressed changes, and is compressed again; what is no gzip changes as it is."""

    def change(data: bytes, draw: Random) -> bytes:
        try:
            inside = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return draw.choice(mutators)(data, draw)
        return gzip.compress(draw.choice(mutators)(inside, draw), 1, mtime=0)

    return change


def fields(places: Sequence[tuple[int, str]]) -> Mutator:
    """Numbers at known places (offset, kind) become extreme; little-endian."""

    def change(data: bytes, draw: Random) -> bytes:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 3))):
            at, kind = draw.choice(places)
            if at + struct.calcsize(kind) <= len(changed):
                changed[at : at + struct.calcsize(kind)] = _number(kind, "<", draw)
        return bytes(changed)

    return change


def json_changed(data: bytes, draw: Random) -> bytes:
    """One or two values of JSON (or of YAML, which is then written as JSON) become nasty, are gone, or are scaled."""
    import yaml

    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        try:
            values = yaml.safe_load(data)
        except (yaml.YAMLError, ValueError, RecursionError):
            return word_replaced(data, draw)
    try:
        return as_json(values_changed(values, draw)).encode(errors="surrogatepass")
    except (ValueError, RecursionError, TypeError, AttributeError):
        return word_replaced(data, draw)


def values_changed(values: Any, draw: Random) -> Any:
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = [place for place in places_in(values) if place]
        if not places:
            return draw.choice(NASTY)
        *way, last = draw.choice(places)
        node = values
        for key in way:
            node = node[key]
        how = draw.random()
        if how < 0.6:
            node[last] = draw.choice(NASTY)
        elif how < 0.7:
            del node[last]
        elif how < 0.8 and isinstance(node[last], int | float):
            node[last] = node[last] * draw.choice((-1, 0, 0.5, 1000, 1e9))
        elif isinstance(node, list):
            node += node[: draw.choice((1, 3, 1000))]
        else:
            node[draw.choice(("hook", "x" * 5000, "\x1b[2J", "", last))] = draw.choice(NASTY)
    return values


def safetensors_changed(data: bytes, draw: Random) -> bytes:
    """The header of a safetensors file lies, and its length is right."""
    (length,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    head = json_changed(data[8 : 8 + length], draw)
    size = len(head) if draw.random() < 0.9 else draw.choice(INTEGERS)
    return struct.pack("<Q", min(size, 2**64 - 1)) + head + data[8 + length :]


def dicom_changed(data: bytes, draw: Random) -> bytes:
    """An attribute, one in a sequence too, gets other bytes, another length or kind, is there twice, or is gone."""
    elements = dicom_elements(data)
    if not elements:
        return flipped(data, draw)
    start, at, length, is_long = draw.choice(elements)
    how = draw.randrange(10)
    if how < 5:
        value = draw.choice((*WORDS[:60], *DICOM_WORDS, struct.pack("<H", draw.choice(INTEGERS) & 0xFFFF)))
        value += b" " * (len(value) % 2)
        size = struct.pack("<I", len(value)) if is_long else struct.pack("<H", len(value) & 0xFFFF)
        return data[: at - len(size)] + size + value + data[at + length :]
    if how < 7:
        size = struct.pack("<I" if is_long else "<H", draw.choice(INTEGERS) & (0xFFFFFFFF if is_long else 0xFFFF))
        return data[: at - len(size)] + size + data[at:]
    if how == 7:
        return data[:start] + data[at + length :]
    if how == 8:
        return data[: at + length] + data[start:]
    return data[: start + 4] + draw.choice((b"SQ", b"OB", b"UN", b"DS", b"US", b"FD", b"??", b"UI")) + data[start + 6 :]


DICOM_WORDS = (
    b"1\\2", b"\\\\\\", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.5",
    b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.5.1.4.1.1.2",
    b"1.2.840.10008.5.1.4.1.1.66.4", b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.840.10008.1.3.10", b"MONOCHROME1", b"RGB",
    b"PALETTE COLOR", b"YBR_FULL", b"ISO_IR 192", b"\\ISO 2022 IR 87", b"ISO_IR 999", b"1\\0\\0\\0\\1\\0",
    b"1\\0\\0\\1\\0\\0", b"0\\0\\0", b"nan\\nan\\nan", b"1e308\\1e308\\1e308", b"0.0\\0.0",
)  # fmt: skip


def dicom_elements(data: bytes, at: int = 132) -> list[tuple[int, int, int, bool]]:
    """Attributes of an explicit little-endian file: start, start of the value, its length, whether that has 32 bits."""
    found = []
    while at + 8 <= len(data):
        group, kind = int.from_bytes(data[at : at + 2], "little"), data[at + 4 : at + 6]
        if group == 0xFFFE:  # an item: what is inside follows
            at += 8
            continue
        is_long = kind in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"OF", b"OD", b"OL", b"UR")
        value = at + (12 if is_long else 8)
        length = int.from_bytes(data[value - (4 if is_long else 2) : value], "little")
        if kind == b"SQ":
            found.append((at, value, 0, True))
            at = value
            continue
        if length > len(data):
            break
        found.append((at, value, length, is_long))
        at = value + length
    return found


def _chunk(data: bytes, draw: Random) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data) - start, draw.choice((1, 2, 4, 16, 64, 512, 4096)))


def _number(kind: str, order: str, draw: Random) -> bytes:
    if kind in "fd":
        return struct.pack(order + kind, draw.choice(REALS))
    size = struct.calcsize(kind)
    value = draw.choice(INTEGERS) if draw.random() < 0.8 else draw.getrandbits(8 * size)
    return (value % 2 ** (8 * size)).to_bytes(size, "little" if order == "<" else "big")
