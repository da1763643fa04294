"""Tasks of one worker: read, degrade, shard, train, restore, stitch, score."""
