"""Writes the PyTorch checkpoints that the reader's tests read; needs PyTorch, once.

    python tests/golden/make_torch_files.py

Written with PyTorch 2.14.1.
"""

import argparse
import collections
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent


def main():
    random = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=random).to(dtype)

    shared = normal(4, 6)
    state = collections.OrderedDict(
        {
            "head.weight": torch.nn.Parameter(normal(3, 5)),
            "head.bias": normal(3),
            "bfloat16": normal(7, dtype=torch.bfloat16),
            "float16": normal(2, 2, dtype=torch.float16),
            "float64": normal(2, dtype=torch.float64),
            "int64": torch.arange(5),
            "int32": torch.arange(3, dtype=torch.int32),
            "int16": torch.arange(3, dtype=torch.int16),
            "int8": torch.tensor([-128, 127], dtype=torch.int8),
            "uint8": torch.tensor([0, 255], dtype=torch.uint8),
            "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "shared": shared,
            "shared.transposed": shared.t(),
            "shared.part": shared[1:3, 2:5],
            "shared.every_other": shared[:, ::2],
        }
    )
    state._metadata = {"": {"version": 1}}
    # What DeiT's training script saves.
    checkpoint = {
        "model": state,
        "optimizer": _optimizer_state(),
        "epoch": 3,
        "best_accuracy": torch.tensor(81.5),
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("a/b")),
        "numpy": np.float64(3),
    }
    torch.save(checkpoint, FOLDER / "torch_zip.pth")
    torch.save(
        checkpoint,
        FOLDER / "torch_legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    torch.save(state, FOLDER / "torch_protocol4.pth", pickle_protocol=4)
    np.savez(
        FOLDER / "torch_expected.npz",
        **{name: _numpy(tensor) for name, tensor in state.items()},
    )


def _optimizer_state():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def _numpy(tensor):
    # As other programs store bfloat16 in an .npz: without a name.
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("V2")
    return tensor.detach().numpy()


if __name__ == "__main__":
    main()
