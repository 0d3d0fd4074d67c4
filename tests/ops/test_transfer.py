"""lit_gpt.ops.transfer: numbers arrive as they were, whatever their shape, type and strides, and come back."""

import numpy as np
import pytest
import torch

from lit_gpt.ops.transfer import to_device, to_host

ON_GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")])
ARRAYS = {
    "tokens of a batch": np.arange(70_000, dtype=np.int64).reshape(7, 10_000),
    "a slice": np.arange(60, dtype=np.int32).reshape(6, 10)[::2, 1:8:3],
    "columns first": np.arange(12.0).reshape(3, 4).T,
    "one number": np.array(3, dtype=np.uint8),
    "nothing": np.zeros((0, 5), dtype=np.float32),
}


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_arrives_as_it_was(array: np.ndarray, device: str):
    arrived = to_device(array, torch.device(device))
    assert arrived.device.type == device
    assert arrived.dtype == torch.from_numpy(array).dtype
    np.testing.assert_array_equal(arrived.cpu().numpy(), array)


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_what_comes_back_is_what_was_there_when_it_was_asked_for(array: np.ndarray, device: str):
    there = to_device(array, torch.device(device))
    told = to_host(there + 0)
    there = there * 2 + 1  # the device goes on
    assert told().device.type == "cpu"
    np.testing.assert_array_equal(told().numpy(), array)
