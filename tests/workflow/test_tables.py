"""Tables in a terminal of 80 columns: nothing is wider, and no name is cut."""

import re
from pathlib import Path

import numpy as np
import pytest

from configs.axes import FileShape
from configs.degradation import named_degradation
from tasks.machine.check import Check
from tasks.scoring.protocol import Score
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from workflow.checks.report import ChecksReport, checks_table
from workflow.evaluate import evaluation, promotion
from workflow.inspection import inspect_volumes, inspection_tables
from workflow.terminal.console import screen
from workflow.tracking.registry import Version

NAME = "sub-a_long_name_of_a_subject_01_ses-baseline_acq-mprage_run-02_T1w.nii.gz"
SCORE = Score(30.1, 29.0, 28.0, 27.0)


def evaluated(_):
    one = evaluation.VolumeScores(
        psnr=SCORE,
        ssim=SCORE,
        nmse=SCORE,
        gain=1.1,
        consistency=1e-4,
        consistency_before=1e-3,
        warnings=(),
        reference=Path(NAME),
    )
    failed = evaluation.FailedVolume(reference=Path(f"failed-{NAME}"), error="why", cause="run")
    return evaluation.summary(evaluation.evaluation_of([one, failed, one], named_degradation("iso2x")))


def promoted(_):
    scores = {"champion": SCORE, "challenger": SCORE}
    versions = [Version("name of a model", number, "0123", None) for number in "12"]
    pair = promotion.ReferenceScores(scores, scores)
    return promotion.promotion_table(
        promotion.Promotion(
            promoted=False, reason="a tie", champion=versions[0], challenger=versions[1], scores=(pair,), run_id="0123"
        )
    )[:1]


def inspected(folder):
    write_volume(
        folder / NAME, np.random.default_rng(0).random((6, 6, 6), np.float32), Grid(FileShape(6, 6, 6), np.eye(4))
    )
    return inspection_tables(inspect_volumes([folder / NAME], None, None))


def checked(_):
    check = Check(NAME, "reading it " * 20, "nothing " * 20, "failed", remedy="repair it " * 20)
    return [checks_table(ChecksReport(checks=(check,), ok=False, seconds=1.0))]


@pytest.mark.parametrize("tables", [evaluated, promoted, inspected, checked])
def test_a_table_fits_80_columns_and_cuts_no_name(tables, tmp_path, capsys):
    with screen(as_json=False) as opened:
        opened.console.width = 80
        opened.show(None, *tables(tmp_path))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    # A long name is folded within its column, the first or, after the box, the second.
    columns = [re.split(r"│| {2,}", line.strip(" │")) for line in printed.splitlines()]
    if tables in {evaluated, inspected}:
        assert any(NAME in "".join(cells[n].strip() for cells in columns if len(cells) > n) for n in (0, 1))
    if tables is evaluated:
        assert "PSNR [dB]" in printed
        assert "cubic with correction  " in printed
