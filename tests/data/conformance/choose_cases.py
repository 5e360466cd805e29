#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Chooses a small set of conformance cases: python3 choose_cases.py CASES [OUTPUT]

CASES is a folder of cases with its manifest.csv. Every (operator, dtype, feature) that the manifest
names, the library has and some file of at most LARGEST bytes touches is touched by a chosen file: a
greedy cover, the file with the most new ones per byte first, then without the files that the later
ones made superfluous. Every feature is touched for some operator and dtype. Prints the files; copies
them to OUTPUT if that is given.
"""
import csv
import pathlib
import shutil
import sys

LARGEST = 200000  # bytes; above are rows of 4096 keys and layers 80 wide, of which others are smaller

def touches(row):
    return {(row["op"], row["dtype"], feature) for feature in row["features"].split(";")}


def choose(rows):
    open_features = set().union(*(touches(row) for row in rows))
    chosen = []
    while open_features:
        best = max(rows, key=lambda row: (len(touches(row) & open_features) / int(row["bytes"]),
                                          row["file"]))
        chosen.append(best)
        open_features -= touches(best)
    for row in sorted(chosen, key=lambda row: -int(row["bytes"])):
        others = set().union(*(touches(other) for other in chosen if other is not row))
        if touches(row) <= others:
            chosen.remove(row)
    return sorted(chosen, key=lambda row: row["file"])


def main():
    source = pathlib.Path(sys.argv[1])
    with open(source / "manifest.csv", newline="") as manifest:
        rows = [row for row in csv.DictReader(manifest)
                if row["op"] != "LinearAttention" and "prob_mod" not in row["features"].split(";")]
    chosen = choose([row for row in rows if int(row["bytes"]) <= LARGEST])
    features = [{f for row in some for f in row["features"].split(";")} for some in (rows, chosen)]
    assert features[0] == features[1], f"not touched: {features[0] - features[1]}"
    for row in chosen:
        print(row["file"])
        if len(sys.argv) > 2:
            target = pathlib.Path(sys.argv[2]) / row["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / row["file"], target)
    print(f"{len(chosen)} files, {sum(int(row['bytes']) for row in chosen)} bytes", file=sys.stderr)


main()
