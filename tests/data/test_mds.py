"""MosaicML's MDS shards, written by hand here. tests/data/test_prepare.py reads one that its own writer made."""

from __future__ import annotations

import json

import numpy as np

from lit_gpt.data import mds


def test_arrays_of_mds_shards_in_every_encoding(tmp_path):
    """Type and shape may be given or not: the encodings' own description (streaming/base/format/mds/encodings.py)."""
    values = np.arange(6, dtype="<i2")
    shapeless = bytes([2 << 2 | 1]) + np.array([2, 3], "<u2").tobytes() + values.tobytes()
    cells = [b"text", bytes([17]) + shapeless, shapeless, values.tobytes()]
    header = {"column_names": list("abcd"), "column_sizes": [None, None, None, 12]}
    header["column_encodings"] = ["str", "ndarray", "ndarray:int16", "ndarray:int16:2,3"]
    columns = json.dumps(header).encode()
    sample = np.array([len(cell) for cell in cells[:3]], "<u4").tobytes() + b"".join(cells)
    start = 12 + len(columns)
    bounds = np.array([1, start, start + len(sample)], "<u4").tobytes()
    (tmp_path / "a.mds").write_bytes(bounds + columns + sample)
    (found,) = mds.arrays(tmp_path / "a.mds")
    assert list(found) == list("bcd")
    for array in found.values():
        np.testing.assert_array_equal(array, values.reshape(2, 3))
