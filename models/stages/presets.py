"""The chains of stages that the project grew from: each with kernel 3, as asked, and in its clean form."""

from configs.axes import TensorShape
from models.stages.stage import Stage

LATENT: TensorShape = (2, 2, 7, 7, 64)

KERNEL_3 = (Stage(32, (3, 3, 3), (2, 2, 2)), Stage(16, (3, 3, 3), (2, 2, 2)))
CLEAN = (Stage(32, (4, 4, 4), (2, 2, 2)), Stage(16, (4, 4, 4), (2, 2, 2)))

PRESETS: dict[str, tuple[Stage, ...]] = {
    "four-stage-k3": (*KERNEL_3, Stage(8, (3, 3, 3), (2, 2, 2)), Stage(1, (3, 3, 3), (1, 2, 2))),
    "four-stage-clean": (*CLEAN, Stage(8, (4, 4, 4), (2, 2, 2)), Stage(1, (3, 4, 4), (1, 2, 2))),
    "three-stage-k3": (*KERNEL_3, Stage(1, (3, 3, 3), (2, 4, 4))),
    "three-stage-clean": (*CLEAN, Stage(1, (4, 8, 8), (2, 4, 4))),
}
