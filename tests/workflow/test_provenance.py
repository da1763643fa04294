"""The record of the code where there is no repository, as in a job on a cluster."""

import pytest

from workflow.tracking import provenance


@pytest.mark.parametrize(
    ("reported", "found"),
    [
        ("", {"commit": "unknown", "dirty": "unknown"}),
        ("0c4f110", {"commit": "0c4f110", "dirty": "no"}),
        ("0c4f110-dirty", {"commit": "0c4f110", "dirty": "yes"}),
    ],
)
def test_a_job_without_a_repository_is_given_its_commit(reported, found, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("VOXLIFT_COMMIT", reported)
    assert provenance.code_state.__wrapped__() == found
