"""Requests of the parts of a run to the cluster."""

from configs.schema import Resources, RunConfig
from workflow.cluster import Request, most_gpus_on_a_node


def training_request(config: RunConfig) -> Request:
    """Request of a training: one GPU per replica where the cluster has GPUs, and the CPUs that the workers would have.

    Without `training.replicas`, all GPUs of the node that has most. More replicas than any node has GPUs become logical
    CPU devices if there is no GPU at all, else the cluster refuses.
    """
    most = most_gpus_on_a_node()
    gpus = (config.training.replicas or most) if most else 0
    return Request(cpus=config.resources.workers * config.resources.cpus_per_worker, gpus=gpus)


def restoring_request(resources: Resources) -> Request:
    """Request of a worker that restores shards."""
    return Request(resources.cpus_per_worker, resources.gpus_per_worker, resources.memory_budget_mib)
