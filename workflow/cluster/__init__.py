"""The only package that imports Ray: clusters, their resources, workers, streams of records, and shared storage."""

from workflow.cluster.connection import cluster
from workflow.cluster.resources import Request, require_room, room
from workflow.cluster.streams import stream
from workflow.cluster.workers import RemoteWorker, TimedWorker, fetch, first_answers, share

__all__ = ["RemoteWorker", "Request", "TimedWorker"]
__all__ += ["cluster", "fetch", "first_answers", "require_room", "room", "share", "stream"]
