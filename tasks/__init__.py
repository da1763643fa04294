"""What one worker does: read, degrade, shard, train, restore, stitch, score."""
