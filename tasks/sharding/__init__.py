"""Exact sharding: the plan, the restoration of one shard, storage and assembly."""
