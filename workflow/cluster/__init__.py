"""The only package that imports Ray: clusters, workers, streams of records, and queries of every node."""

from workflow.cluster.connection import cluster
from workflow.cluster.nodes import on_other_nodes
from workflow.cluster.request import Request, most_gpus_on_a_node, require_room
from workflow.cluster.streams import stream
from workflow.cluster.workers import RemoteWorker, WorkerDiedError, WorkerError, fetch, first_answers, share

__all__ = [
    "RemoteWorker",
    "Request",
    "WorkerDiedError",
    "WorkerError",
    "cluster",
    "fetch",
    "first_answers",
    "most_gpus_on_a_node",
    "on_other_nodes",
    "require_room",
    "share",
    "stream",
]
