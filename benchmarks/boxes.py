"""The command with shards that are boxes, each with a halo on all sides, as before streams: for comparison alone."""

import workflow.upscale.plan
from tasks.sharding.plan import plan_boxes
from workflow.cli import main

if __name__ == "__main__":
    workflow.upscale.plan.plan_shards = plan_boxes  # type: ignore[attr-defined]
    main()
