#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the corpus of tests/fuzz/fuzz_safetensors.cpp: small files, whole and damaged.

    python3 make_safetensors.py safetensors

Files that begin with "good" must be read, all others refused.
"""
import json
import pathlib
import struct
import sys

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
         "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)


def write(name, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    length = len(text) if length is None else length
    (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", length) + text + data)


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# Whole files.
write("good_empty", {})
write("good_metadata", {"__metadata__": {"format": "pt", "": ""}})
write("good_padded", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   ', b"\x07")
every, at = {}, 0
for dtype, size in SIZES.items():
    every[dtype.lower()] = tensor(dtype, [2], at, at + 2 * size)
    at += 2 * size
write("good_every_dtype", every, bytes(range(at)))
write("good_every_bit", every, b"\xff" * at)
write("good_ranks", {"r0": tensor("F32", [], 0, 4), "r1": tensor("F32", [1], 4, 8),
                     "r2": tensor("F32", [1, 1], 8, 12), "r3": tensor("F32", [1, 1, 1], 12, 16),
                     "none": tensor("F32", [0, 2**62], 16, 16)},
      struct.pack("<4f", 1, -0.0, float("nan"), float("inf")))
write("good_names", {"é\u20ac\U0001f600\n\"": tensor("I8", [1], 0, 1), "": tensor("I8", [1], 1, 2)},
      b"\x80\x7f")
# Lengths and white space.
write("length_huge", {}, length=2**64 - 1)
write("length_past_end", {}, length=3)
write("length_one", {}, length=1)
write("length_zero", {}, length=0)
(folder / "short.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{")
(folder / "nothing.safetensors").write_bytes(b"")
write("leading_space", b" {}")
write("zero_byte", b'{"a":1}\0')
write("trailing_text", b"{} x")
# Shapes and offsets.
write("product_overflows", {"a": tensor("F32", [2**32, 2**32], 0, 4)}, b"\0" * 4)
write("bytes_overflow", {"a": tensor("F64", [2**61], 0, 8)}, b"\0" * 8)
write("shape_too_large", {"a": tensor("U8", [2**63], 0, 1)}, b"\0")
write("shape_negative", {"a": tensor("U8", [-1, -1], 0, 1)}, b"\0")
write("shape_float", b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', b"\0")
write("shape_number", b'{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}', b"\0")
write("rank_65", {"a": tensor("U8", [1] * 65, 0, 1)}, b"\0")
write("offsets_negative", {"a": tensor("U8", [1], -1, 0)}, b"\0")
write("offsets_descend", {"a": tensor("U8", [1], 1, 0)}, b"\0")
write("offsets_huge", {"a": tensor("U8", [1], 2**64 - 1, 0)}, b"\0")
write("offsets_three", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}', b"\0")
write("offsets_past_end", {"a": tensor("U8", [2], 0, 2)}, b"\0")
write("hole", {"a": tensor("U8", [1], 1, 2)}, b"\0\0")
write("overlap", {"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"\0\0\0")
write("bytes_left", {"a": tensor("U8", [1], 0, 1)}, b"\0\0")
# Keys and values.
write("dtype_unknown", {"a": tensor("F8_E4M3", [1], 0, 1)}, b"\0")
write("field_missing", b'{"a":{"dtype":"U8","shape":[1]}}', b"\0")
write("field_twice", b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"\0")
write("field_unknown", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}', b"\0")
write("name_twice", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
      b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0")
write("name_not_utf8", b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0")
write("name_lone_surrogate", b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0")
write("metadata_twice", b'{"__metadata__":{},"__metadata__":{}}')
write("metadata_number", {"__metadata__": {"a": 1}})
write("metadata_array", {"__metadata__": []})
write("array", b"{" + b"[" * 60 + b"]" * 60)
write("depth_arrays", b'{"a":' + b"[" * 200)
write("depth_objects", b'{"a":' * 60 + b"1" + b"}" * 60)
write("number_of_400_digits", b'{"a":{"dtype":"U8","shape":[' + b"9" * 400 + b'],"data_offsets":[0,1]}}')
write("null", b'{"a":null}')
write("cut_short", b'{"a":{"dtype":"U8","sha')
