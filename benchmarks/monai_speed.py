"""The peer: MONAI's sliding window over the same network in PyTorch.

`.bench/bin/python benchmarks/monai_speed.py MODEL [D H W]`: on two threads, channels last; with a grid on the GPU if
there is one, 1, 4 and 8 windows at a time. Runs in an environment of its own, so it imports nothing of ours. Window
96x96x96, overlap 0.25, Gaussian. Prints JSON.
"""

import json
import sys
import time
from pathlib import Path

import monai
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn

GRID = (192, 224, 192)
WINDOW = (96, 96, 96)
WINDOWS = (1, 4, 8)  # at a time
THREADS = 2
REPEATS = 2
ACTIVATIONS = {
    "leaky_relu": lambda t: nn.functional.leaky_relu(t, 0.2, inplace=True),
    "relu": lambda t: nn.functional.relu(t, inplace=True),
    "linear": lambda t: t,
}


class Network(nn.Module):
    """The layer graph that `benchmarks.keras_speed make` wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        architecture = json.loads(path.with_suffix(".json").read_text())
        self.nodes, self.output = architecture["nodes"], architecture["output"]
        weights = np.load(path.with_suffix(".npz"))
        self.convolutions = nn.ModuleDict()
        for number, node in enumerate(self.nodes):
            if node["kind"] not in ("Conv3D", "Conv3DTranspose"):
                continue
            kernel = torch.from_numpy(weights[node["weights"] + "/0"]).permute(4, 3, 0, 1, 2)
            # Both frameworks pad (k - s) / 2 on each side where that is whole.
            padding = [(k - s) // 2 for k, s in zip(node["kernel_size"], node["strides"], strict=True)]
            kind = nn.Conv3d if node["kind"] == "Conv3D" else nn.ConvTranspose3d
            layer = kind(*self.channels(kernel, kind), node["kernel_size"], node["strides"], padding)
            with torch.no_grad():
                layer.weight.copy_(kernel)
                layer.bias.copy_(torch.from_numpy(weights[node["weights"] + "/1"]))
            self.convolutions[str(number)] = layer

    @staticmethod
    def channels(kernel: torch.Tensor, kind: type[nn.Module]) -> tuple[int, int]:
        """Conv3D kernels come as (out, in, …) here, those of Conv3DTranspose as (in, out, …)."""
        first, second = kernel.shape[:2]
        return (second, first) if kind is nn.Conv3d else (first, second)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Compute the layers in the order of the graph."""
        tensors: list[torch.Tensor] = []
        for number, node in enumerate(self.nodes):
            sources = [tensors[source] for source in node["sources"]]
            if node["kind"] == "InputLayer":
                tensors.append(volume)
            elif node["kind"] == "Add":
                tensors.append(sources[0] + sources[1])
            elif node["kind"] == "Concatenate":
                tensors.append(torch.cat(sources, 1))
            else:
                tensors.append(ACTIVATIONS[node["activation"]](self.convolutions[str(number)](sources[0])))
        return tensors[self.output]


def main(path: Path) -> None:
    torch.set_num_threads(THREADS)
    model = Network(path).eval().to(memory_format=torch.channels_last_3d)
    voxels = torch.from_numpy(np.random.default_rng(0).random(GRID, np.float32))[None, None]
    voxels = voxels.to(memory_format=torch.channels_last_3d)
    times: dict[str, list[float]] = {"window": [], "whole": []}
    with torch.inference_mode():
        for _ in range(REPEATS):
            begun = time.perf_counter()
            sliding_window_inference(voxels, WINDOW, 1, model, overlap=0.25, mode="gaussian")
            times["window"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            answer = model(voxels)
            times["whole"].append(time.perf_counter() - begun)
    check = float(answer[0, 0, 50:60, 60:70, 70:80].mean())
    print(json.dumps({"seconds": min(times["window"]), "whole_seconds": min(times["whole"]), "check": check}))


def on_device(path: Path, grid: tuple[int, ...]) -> None:
    """Print million voxels a second from host memory to host memory, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Network(path).eval().to(device)
    voxels = torch.from_numpy(np.random.default_rng(0).random(grid, np.float32))[None, None]
    rows = []
    for precision in ("float32", "tf32") if device.type == "cuda" else ("float32",):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        row = {"precision": precision, "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU"}
        for windows in WINDOWS:

            def once(windows: int = windows) -> torch.Tensor:
                # The windows are computed on one device, and volume and sums stay there.
                given = voxels.to(device)
                with torch.inference_mode():
                    made = sliding_window_inference(given, WINDOW, windows, model, overlap=0.25, mode="gaussian")
                return made.cpu()

            answer, times = once(), []  # once to warm up
            for _ in range(3):
                begun = time.perf_counter()
                once()
                times.append(time.perf_counter() - begun)
            row[f"MONAI, {windows} at a time"] = round(voxels.numel() / min(times) / 1e6, 2)
        middle = tuple(slice(size // 2, size // 2 + 4) for size in grid)
        rows.append(row | {"check": float(answer[0, 0][middle].mean())})
    print(json.dumps({"rows": rows, "torch": torch.__version__, "MONAI": monai.__version__}))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        on_device(Path(sys.argv[1]), tuple(map(int, sys.argv[2:])))
    else:
        main(Path(sys.argv[1]))
