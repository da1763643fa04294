"""The default restorer's training step in PyTorch, channels last: `python step_in_torch.py < network.json`.

Runs where PyTorch is installed and nothing of ours is: it reads the network from standard input, and prints as JSON the
parameters, the loss before the first step, and seconds per step.
"""

import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn.functional import leaky_relu as leaky_at
from torch.nn.functional import pad

Triple = tuple[int, int, int]


def leaky_relu(tensor: torch.Tensor) -> torch.Tensor:
    """Keras' leaky ReLU."""
    return leaky_at(tensor, 0.2)


class Same(nn.Module):
    """A convolution with TensorFlow's SAME padding, which puts the odd voxel after."""

    def __init__(self, inputs: int, filters: int, kernel_size: Triple, strides: Triple = (1, 1, 1)) -> None:
        super().__init__()
        total = [k - s for k, s in zip(kernel_size, strides, strict=True)]
        self.uneven = (
            [size for t in reversed(total) for size in (t // 2, t - t // 2)] if any(t % 2 for t in total) else None
        )
        padding = 0 if self.uneven else [t // 2 for t in total]
        self.conv = nn.Conv3d(inputs, filters, kernel_size, strides, padding=padding)

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        return self.conv(pad(tensor, self.uneven) if self.uneven else tensor)


class Restorer(nn.Module):
    """The network of `models.network.restorer.build_restorer`, with leaky ReLU."""

    def __init__(self, latent_filters: int, stages: list[dict[str, Any]], convolutions: list[int], skip: str) -> None:
        super().__init__()
        self.concatenates = skip == "concatenate"
        joined = 2 if self.concatenates else 1
        filters = [latent_filters, *(stage["filters"] for stage in stages[:-1])]
        self.down, self.up, self.after_down, self.after_up = (nn.ModuleList() for _ in range(4))
        inputs = 1
        for level in reversed(range(len(stages))):
            stage = stages[level]
            self.down.append(Same(inputs, filters[level], stage["kernel_size"], stage["strides"]))
            inputs = filters[level]
            self.after_down.append(nn.ModuleList(Same(inputs, inputs, (3, 3, 3)) for _ in range(convolutions[level])))
        for level, stage in enumerate(stages):
            kernel_size, strides = stage["kernel_size"], stage["strides"]
            padding = [(k - s) // 2 for k, s in zip(kernel_size, strides, strict=True)]
            self.up.append(nn.ConvTranspose3d(inputs, stage["filters"], kernel_size, strides, padding))
            times = convolutions[level + 1] if level + 1 < len(stages) else 0
            inputs = stage["filters"]
            self.after_up.append(
                nn.ModuleList(Same((1 if turn else joined) * inputs, inputs, (3, 3, 3)) for turn in range(times))
            )
            inputs = inputs if times else joined * inputs

    def forward(self, resampled: torch.Tensor) -> torch.Tensor:
        """Restore."""
        tensor, encoded = resampled, []
        for down, after in zip(self.down, self.after_down, strict=True):
            tensor = leaky_relu(down(tensor))
            for convolution in after:
                tensor = leaky_relu(convolution(tensor))
            encoded.append(tensor)
        for level, (up, after) in enumerate(zip(self.up, self.after_up, strict=True)):
            tensor = up(tensor)
            if level + 1 == len(self.up):
                return resampled + tensor
            upsampled, skipped = leaky_relu(tensor), encoded[-2 - level]
            tensor = torch.cat([upsampled, skipped], 1) if self.concatenates else upsampled + skipped
            for convolution in after:
                tensor = leaky_relu(convolution(tensor))
        raise AssertionError("there is a last stage")


def main() -> None:
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    model = Restorer(asked["latent_filters"], asked["stages"], asked["convolutions"], asked["skip"]).to(
        memory_format=torch.channels_last_3d
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    shape = (asked["batch_size"], 1, *asked["patch"])
    resampled, fine = (torch.rand(shape).to(memory_format=torch.channels_last_3d) for _ in range(2))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.mean((model(resampled) - fine) ** 2)
        loss.backward()
        optimizer.step()

    step()
    seconds = []
    for _ in range(asked["steps"]):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds}))


if __name__ == "__main__":
    main()
