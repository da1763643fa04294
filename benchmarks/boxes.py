"""The command with shards that are boxes, each with a halo on all sides, as before streams: for comparison alone."""

import workflow.upscale.plan
from configs.axes import NetworkShape
from models.network.cost import Cost
from tasks.sharding.plan import ShardPlan, plan_boxes
from workflow.cli import main


def boxes(
    target_shape: NetworkShape,
    cost: Cost,
    budget_mib: int,
    *,
    resident_bytes: int = 0,
    written_axis: int | None = None,  # noqa: ARG001 - boxes are computed in the order of the file
    name: str = "the volume",
) -> ShardPlan:
    return plan_boxes(target_shape, cost, budget_mib, resident_bytes=resident_bytes, name=name)


if __name__ == "__main__":
    workflow.upscale.plan.plan_shards = boxes  # type: ignore[attr-defined]
    main()
