#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the layer files with cross-attention (x_kv) of this folder: the formulas of multi-head
attention in plain Python loops and double precision; gradients by central differences.

    python3 make_cross_layers.py .
"""
import json
import math
import pathlib
import struct
import sys

folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
HEADS, DIM, EMBED, KV, OUT = 2, 3, 6, 4, 5
state = 12345


def number():
    """From -1 to 1, a multiple of 2^-10: exact in float."""
    global state
    state = (1103515245 * state + 12345) % 2**31
    return ((state >> 8) % 2049 - 1024) / 1024


def matrix(rows, cols):
    return [[number() for _ in range(cols)] for _ in range(rows)]


def project(x, w, b):
    return [[sum(a * c for a, c in zip(row, out)) + b[o] for o, out in enumerate(w)] for row in x]


def attention(p, keep):
    """y and the weights [head][query][key] of one sequence."""
    q, k, v = (project(p[x], p["w" + n], p["b" + n][0])
               for x, n in (("x", "q"), ("x_kv", "k"), ("x_kv", "v")))
    heads, weights = [[] for _ in q], []
    for h in range(HEADS):
        at = slice(h * DIM, (h + 1) * DIM)
        weights.append([])
        for i, row in enumerate(q):
            scores = [sum(a * b for a, b in zip(row[at], key[at])) / math.sqrt(DIM) for key in k]
            e = [math.exp(s) if keep[j] else 0.0 for j, s in enumerate(scores)]
            w = [x / sum(e) for x in e]
            weights[-1].append(w)
            heads[i] += [sum(w[j] * v[j][c] for j in range(len(v))) for c in range(h * DIM, (h + 1) * DIM)]
    return project(heads, p["wo"], p["bo"][0]), weights


def flat(x):
    return [x] if not isinstance(x, list) else [y for part in x for y in flat(part)]


def shape(x):
    return [] if not isinstance(x, list) else [len(x)] + shape(x[0])


def write(name, tensors, metadata):
    header, data = {"__metadata__": metadata}, b""
    for key, (dtype, values) in tensors.items():
        begin = len(data)
        size = shape(values)
        if key.startswith("b") or key.startswith("grad_b"):
            size = size[1:]
        data += struct.pack(f"<{len(flat(values))}{ {'F32': 'f', 'F64': 'd', 'U8': 'B'}[dtype] }",
                            *flat(values))
        header[key] = {"dtype": dtype, "shape": size, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


p = {"wq": matrix(HEADS * DIM, EMBED), "bq": matrix(1, HEADS * DIM),
     "wk": matrix(HEADS * DIM, KV), "bk": matrix(1, HEADS * DIM),
     "wv": matrix(HEADS * DIM, KV), "bv": matrix(1, HEADS * DIM),
     "wo": matrix(OUT, HEADS * DIM), "bo": matrix(1, OUT)}
metadata = {"heads": str(HEADS), "head_dim": str(DIM), "causal": "0", "kind": "cross-attention"}
floats = {name: ("F32", values) for name, values in p.items()}

# One sequence, and the gradients of sum(grad_y * y).
one = dict(p, x=matrix(3, EMBED), x_kv=matrix(4, KV))
y, weights = attention(one, [1] * 4)
write("cross_one", dict(floats, x=("F32", one["x"]), x_kv=("F32", one["x_kv"]), y=("F32", y),
                        attn=("F32", weights)), metadata)
grad_y = matrix(3, OUT)
gradients = {"grad_y": ("F64", grad_y)}
for name, values in one.items():
    gradient = []
    for row in values:
        gradient.append([])
        for c, old in enumerate(row):
            losses = []
            for step in (1e-5, -1e-5):
                row[c] = old + step
                losses.append(sum(a * b for a, b in zip(flat(grad_y), flat(attention(one, [1] * 4)[0]))))
            row[c] = old
            gradient[-1].append((losses[0] - losses[1]) / 2e-5)
    gradients["grad_" + name] = ("F64", gradient)
write("cross_one.grads", gradients, {"for_file": "cross_one.safetensors"})

# Two sequences with other keys than queries, of which each ignores some.
batch = [dict(p, x=matrix(3, EMBED), x_kv=matrix(5, KV)) for _ in range(2)]
keep = [[1, 1, 1, 0, 0], [1, 0, 1, 1, 0]]
results = [attention(one, mask) for one, mask in zip(batch, keep)]
write("cross_masked", dict(floats, x=("F32", [b["x"] for b in batch]),
                           x_kv=("F32", [b["x_kv"] for b in batch]), key_keep_mask=("U8", keep),
                           y=("F32", [r[0] for r in results]),
                           attn=("F32", [r[1] for r in results])), metadata)
