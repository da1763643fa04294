"""Ask the autoscaler of a cluster, if it has one, whether it could ever make room: its limits are known to it alone."""

import time
from collections.abc import Mapping, Sequence

from ray.autoscaler.sdk import request_resources
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import internal_kv_get_gcs_client

ROUND_SECONDS = 15.0  # an autoscaler decides every 5 s
START_SECONDS = 3.0  # for one that has not decided anything yet
POLL_SECONDS = 0.1

Bundle = Mapping[str, float]


def could_hold(bundles: Sequence[Bundle]) -> bool | None:
    """Return whether the nodes of the cluster and those that its autoscaler may add hold so many equal bundles.

    If they do, the autoscaler begins to add nodes.

    Args:
        bundles: Resources by the names that Ray gives them.

    Returns:
        None if there is no autoscaler, of version 2 of Ray's.
    """
    found = _status()
    # Nodes that were started by hand have no type: nobody adds more of them.
    if not any(node.ray_node_type_name for node in found.cluster_resource_state.node_states):
        return None
    # What another program wants of the autoscaler would be lost.
    before = [
        dict(alike.request.resources_bundle)
        for constraint in found.cluster_resource_state.cluster_resource_constraints
        for alike in constraint.resource_requests
        for _ in range(alike.count)
    ]
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        return _decides_for(len(bundles), bundles[0])
    finally:
        request_resources(bundles=before)


def _decides_for(count: int, bundle: Bundle) -> bool | None:
    """Wait for the first decision of the autoscaler that knows a request of so many bundles; None if none comes."""
    # Each state of the cluster that anybody reads has a greater number.
    asked, began = _status().cluster_resource_state.cluster_resource_state_version, time.monotonic()
    while True:
        decided = _status().autoscaling_state
        if decided.last_seen_cluster_resource_state_version > asked:
            return not any(
                (alike.count, dict(alike.request.resources_bundle)) == (count, dict(bundle))
                for constraint in decided.infeasible_cluster_resource_constraints
                for alike in constraint.resource_requests
            )
        limit = ROUND_SECONDS if decided.autoscaler_state_version else START_SECONDS
        if time.monotonic() - began > limit:
            return None
        time.sleep(POLL_SECONDS)


def _status() -> GetClusterStatusReply:
    """Read the state of the cluster and the last decision of its autoscaler, which Ray's public function leaves out."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=10))
    return reply
