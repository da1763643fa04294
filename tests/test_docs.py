"""Every command and every piece of Python in the documentation is run, or is listed here with the reason why not."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from configs.axes import FileShape
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_slabs
from tests.ray_nodes import ray_nodes
from tests.tasks.dicom import write_series
from workflow.cli import COMMANDS, app

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FRONT = ROOT / "README.md"
# Pages whose blocks run one after the other, in one folder.
JOURNEYS = (("first-result.md",), ("own-scan.md",), ("formats.md",), ("training.md", "evaluation.md"))
CLUSTER = "cluster.md"  # run by tests/workflow/test_cluster_page.py
SET_UP = "makes an environment: what the runner of the tests has done"
NO_HOST = "needs machines that a test does not have"
NOT_RUN = {
    ("README.md", "make demo     # sets up"): "what the runner of the tests does, and tests/workflow/test_demo.py",
    ("README.md", "make setup  "): f"{SET_UP}; the commands of voxlift are those of first-result.md",
    ("README.md", "import nibabel"): "the same as in first-result.md, which a test requires",
    ("README.md", "sweep:"): "a part of a configuration: tests/workflow/test_sweep.py",
    ("README.md", "configs/    "): "a list of folders",
    ("architecture.md", "            command line"): "a drawing",
    ("first-result.md", "make setup"): SET_UP,
    ("first-result.md", "mlflow ui"): "a server, which runs until it is stopped; cluster.md starts one",
    ("cluster.md", "ssh -N -L 5000"): NO_HOST,
    ("cluster.md", "ssh -N -L 8265"): NO_HOST,
    ("cluster.md", "find /shared/scans"): f"{NO_HOST}; tests/workflow/test_slurm.py runs a job array",
    ("cluster.md", "sbatch"): f"{NO_HOST}; tests/workflow/test_slurm.py runs the script",
    ("cluster.md", "podman build"): "builds an image, as make image does, which tests it",
    ("cluster.md", "kubectl create"): f"{NO_HOST}; tests/workflow/test_cluster_files.py reads the manifest",
    ("cluster.md", "podman save"): "hands that image on",
    ("cluster.md", "docker save"): f"{NO_HOST}; tests/workflow/test_cluster_files.py builds the launcher's commands",
    ("reliability.md", "python -m tests.chaos"): "half an hour; tests/chaos runs it in small",
}


def fences(page):
    """The language and the text of each block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [text for name, text in fences(page) if name == language]


def shown(page):
    """Each `$ voxlift …` of the console blocks with the output that stands below it."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def is_run(page, language, text):
    journey = page.name in {CLUSTER, *chain(*JOURNEYS)} and language == "sh"
    python = language == "python" and (">>>" in text or page.name in chain(*JOURNEYS))
    return journey or python or (language == "console" and text.startswith("$ voxlift "))


def test_no_block_is_left_out_in_silence():
    left = [
        (page.name, text)
        for page in [FRONT, *PAGES]
        for language, text in fences(page)
        if not is_run(page, language, text)
    ]
    unknown = [(page, text) for page, text in left if not any(_matches(entry, page, text) for entry in NOT_RUN)]
    assert unknown == []
    stale = [entry for entry in NOT_RUN if not any(_matches(entry, page, text) for page, text in left)]
    assert stale == []
    assert blocks(FRONT, "python") == blocks(ROOT / "docs" / "first-result.md", "python")


def _matches(entry, page, text):
    return entry[0] == page and text.startswith(entry[1])


@pytest.mark.parametrize(("command", "output"), [pair for page in PAGES for pair in shown(page)])
def test_commands_print_what_the_page_shows(command, output):
    program, *arguments = shlex.split(command)
    assert program == "voxlift"
    done = subprocess.run(
        [sys.executable, "-m", "workflow", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 2}
    printed = done.stderr if done.returncode else done.stdout
    assert [line.rstrip() for line in printed.splitlines()] == output.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_page_gives_what_it_shows(page):
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks(page, "python")), {}, page.name, str(page), 0)
    assert doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.parametrize("page", [FRONT, *PAGES], ids=lambda page: page.name)
def test_commands_within_the_text_exist(page):
    runner = CliRunner(env={"COLUMNS": "200"})
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command, rest in re.findall(r"`voxlift ([a-z][a-z-]*)([^`]*)`", text):
        assert command in COMMANDS, command
        known = runner.invoke(app, [command, "--help"]).output
        for option in re.findall(r"--[a-z][a-z-]*", rest):
            assert re.search(rf"{option}\b", known), f"voxlift {command} {option}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pages", JOURNEYS, ids=lambda pages: pages[0])
def test_the_commands_of_a_page_lead_to_its_end(pages, tmp_path):
    script = ["set -euxo pipefail"]
    for language, text in chain(*(fences(ROOT / "docs" / page) for page in pages)):
        script += {"sh": [text], "python": ["python - <<'END_OF_BLOCK'", f"{text}END_OF_BLOCK"]}.get(language, [])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_A", "MLFLOW_T"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = tmp_path / "log"
    folder = tmp_path / "work"
    folder.mkdir()
    if pages == ("own-scan.md",):
        thick = gaussian_filter(np.random.default_rng(0).normal(size=(48, 48, 12)), (3, 3, 1))
        for number in (1, 2):
            write_series(folder / "dicom", (thick * 9000).astype(np.int16), np.diag([1.0, 1, 4, 1]), number=number)
    if pages == ("formats.md",):
        voxels = np.random.default_rng(0).gamma(2.0, 20.0, (20, 20, 20)).astype(np.float32)
        write_slabs(folder / "volume.zarr", [voxels], Grid(FileShape(20, 20, 20), np.eye(4)), dtype="uint8")
    # One Ray for all commands of a page: starting one takes 5 to 12 seconds.
    with log.open("w") as out, ray_nodes(tmp_path, "--num-cpus=4") as cluster:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=folder,
            env={**environment, **cluster.environment},
            stdout=out,
            stderr=out,
            check=False,
        )
    assert done.returncode == 0, log.read_text()
    # The files of the page's tables are there.
    for page in pages:
        for name in re.findall(r"^\| `([\w/.-]+)`", (ROOT / "docs" / page).read_text(), re.MULTILINE):
            assert list(folder.glob(f"**/{name}")), name
