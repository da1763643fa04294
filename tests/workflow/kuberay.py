"""The fields of KubeRay's resources that our manifests use; any other is refused, as a slip of the pen would be.

Compared with the reference of KubeRay 1.7.0 (its docs/reference/api.md) and the rules of its operator; every field is
there since 1.5.1. Fields of pods are those of Kubernetes 1.28, as far as they are used.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$")]
Resource = Literal["cpu", "memory", "nvidia.com/gpu"]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class _Resource(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, strict=True)


class _Claim(_Resource):
    claim_name: Name


class _EmptyDir(_Resource):
    medium: Literal["Memory"] | None = None
    size_limit: Quantity | None = None


class _Volume(_Resource):
    name: Name
    empty_dir: _EmptyDir | None = None
    persistent_volume_claim: _Claim | None = None


class _Mount(_Resource):
    name: Name
    mount_path: Annotated[str, Field(pattern="^/")]


class _SecretKey(_Resource):
    name: Name
    key: str
    optional: bool = False


class _ValueFrom(_Resource):
    secret_key_ref: _SecretKey


class _Variable(_Resource):
    name: Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")]
    value: StrictStr | None = None
    value_from: _ValueFrom | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        assert (self.value is None) != (self.value_from is None), "one of value and valueFrom"
        return self


class _Resources(_Resource):
    requests: dict[Resource, Quantity]
    limits: dict[Resource, Quantity]

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        requested, limit = (given.get("nvidia.com/gpu") for given in (self.requests, self.limits))
        assert requested == limit, "GPUs are not shared: request and limit are equal"
        return self


class _Capabilities(_Resource):
    drop: list[Literal["ALL"]]


class _ContainerSecurity(_Resource):
    allow_privilege_escalation: bool
    capabilities: _Capabilities
    read_only_root_filesystem: bool


class _Seccomp(_Resource):
    type: Literal["RuntimeDefault"]


class _PodSecurity(_Resource):
    run_as_user: Positive
    run_as_group: Positive
    run_as_non_root: bool
    seccomp_profile: _Seccomp


class _Exec(_Resource):
    command: Annotated[list[StrictStr], Field(min_length=1)]


class _Handler(_Resource):
    exec: _Exec


class _Lifecycle(_Resource):
    pre_stop: _Handler


class _Container(_Resource):
    name: Name
    image: Annotated[str, Field(pattern=r"^[a-z0-9./-]+:[\w.-]+$")]
    env: list[_Variable] = []
    resources: _Resources
    security_context: _ContainerSecurity
    lifecycle: _Lifecycle | None = None
    volume_mounts: list[_Mount]


class _Reference(_Resource):
    name: Name


class _Toleration(_Resource):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class _Pod(_Resource):
    restart_policy: Literal["Never"] | None = None
    image_pull_secrets: list[_Reference] = []
    node_selector: dict[str, StrictStr] = {}
    tolerations: list[_Toleration] = []
    security_context: _PodSecurity
    termination_grace_period_seconds: Positive | None = None
    containers: Annotated[list[_Container], Field(min_length=1)]
    volumes: list[_Volume]

    @model_validator(mode="after")
    def _mounts_its_volumes(self) -> Self:
        mounted = {mount.name for container in self.containers for mount in container.volume_mounts}
        assert mounted == {volume.name for volume in self.volumes}, "every mount has its volume"
        return self


class _PodTemplate(_Resource):
    spec: _Pod


class _Head(_Resource):
    ray_start_params: dict[str, StrictStr]
    template: _PodTemplate


class _Workers(_Head):
    group_name: Name
    replicas: Count
    min_replicas: Count
    max_replicas: Positive

    @model_validator(mode="after")
    def _between_its_limits(self) -> Self:
        assert self.min_replicas <= self.replicas <= self.max_replicas, "minReplicas <= replicas <= maxReplicas"
        return self


class _Authentication(_Resource):
    mode: Literal["disabled", "token"]


class _Cluster(_Resource):
    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    auth_options: _Authentication
    head_group_spec: _Head
    worker_group_specs: list[_Workers]


class _Job(_Resource):
    entrypoint: str
    job_id: Name
    runtime_env_yaml: Annotated[str, Field(alias="runtimeEnvYAML")]
    backoff_limit: Count
    active_deadline_seconds: Positive
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: StrictInt
    submitter_pod_template: _PodTemplate
    ray_cluster_spec: _Cluster

    @model_validator(mode="after")
    def _shuts_down_after_its_time(self) -> Self:
        assert self.shutdown_after_job_finishes or not self.ttl_seconds_after_finished, "a time needs the shutdown"
        return self


class _GeneratedName(_Resource):
    # With the five letters that Kubernetes adds, within the 47 that the operator takes.
    generate_name: Annotated[str, Field(pattern="^[a-z][-a-z0-9]{0,41}$")]


class RayJob(_Resource):
    """A job with a cluster of its own."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: _GeneratedName
    spec: _Job
