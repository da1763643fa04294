"""The import rules: layers, no circles, and one place for each external system."""

import ast
import re
import resource
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "configs": set(),
    "models": {"configs"},
    "tasks": {"models", "configs"},
    "workflow": {"tasks", "models", "configs"},
}
IMPORTED_IN = {
    "nibabel": "tasks/volume/nifti.py",
    "SimpleITK": "tasks/volume/itk.py",
    "zarr": "tasks/volume/ome_zarr.py",
    "ray": "workflow/cluster/",
    "mlflow": "workflow/tracking/",
}

# Copied into every logged model, and run there without the rest of the project.
SERVED = ROOT / "workflow" / "tracking" / "serving.py"


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(module: Path) -> set[str]:
    """The dotted names that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    for module in modules(package):
        ours = {name.split(".")[0] for name in imports(module)} & set(ALLOWED) - {package}
        assert ours <= ALLOWED[package], f"{module.relative_to(ROOT)} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("system", IMPORTED_IN)
def test_each_external_system_is_imported_in_one_place(system):
    users = {
        module.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for module in modules(package)
        if system in {name.split(".")[0] for name in imports(module)}
    }
    assert all(user.startswith(IMPORTED_IN[system]) for user in users)


def test_tensorflow_stays_out_of_the_command_line():
    for package in ("configs", "workflow"):
        for module in modules(package):
            assert not {name.split(".")[0] for name in imports(module)} & {"tensorflow", "keras"} or module == SERVED, (
                module
            )


@pytest.mark.parametrize("package", ["configs", "models", "tasks"])
def test_options_of_the_command_line_are_named_in_workflow_alone(package):
    for module in modules(package):
        texts = [node.value for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Constant)]
        named = [text for text in texts if isinstance(text, str) and re.search(r"(^|\s|`)--[a-z]", text)]
        assert not named, f"{module.relative_to(ROOT)}: {named}"


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `code`."""
    return {name.split(".")[0] for name in modules_after(code)}


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


# Not pydantic: typer parses the option that installs completion by it, which takes a twentieth of a second.
HEAVY = {"tensorflow", "keras", "ray", "mlflow", "nibabel", "numpy", "scipy", "matplotlib", "nilearn"}


def test_help_loads_nothing_heavy():
    code = """from workflow.cli import COMMANDS, app
for asked in ([], *([name] for name in COMMANDS)):
    app([*asked, "--help"], standalone_mode=False)"""
    assert not loaded_by(code) & HEAVY


@pytest.mark.parametrize("words", ["voxlift upscale --sp", "voxlift train is"])
def test_completion_loads_nothing_heavy(words):
    code = f"""import contextlib, os
os.environ |= {{"_VOXLIFT_COMPLETE": "complete_bash", "COMP_WORDS": "{words}", "COMP_CWORD": "2"}}
from workflow.cli import app
with contextlib.suppress(SystemExit):
    app(prog_name="voxlift")"""
    assert not loaded_by(code) & HEAVY


def test_processes_that_draw_patches_load_no_tensorflow():
    assert not loaded_by("import tasks.training.drawing") & {"tensorflow", "keras", "ray", "mlflow", "matplotlib"}


def test_comparing_runs_loads_nothing_heavy():
    """Until it opens the store and draws; nothing that reads volumes or models at all."""
    assert not loaded_by("import workflow.evaluate.comparison") & HEAVY


def test_a_command_loads_no_other():
    loaded = modules_after("from workflow.cli import app; app(['train', '--help'], standalone_mode=False)")
    commands = {name for name in loaded if name.startswith("workflow.commands.")}
    assert commands == {"workflow.commands.options", "workflow.commands.train"}


def test_help_answers_in_a_second():
    """Of a processor's time: what the clock says on a machine that does nothing else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "workflow", "--help"], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def name_of(module: Path) -> str:
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def internal_imports() -> dict[str, set[str]]:
    """Each module with the modules of ours that it imports, wherever in it."""
    paths = {name_of(module): module for package in ALLOWED for module in modules(package)}
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, module in paths.items():
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & set(paths)
            elif isinstance(node, ast.ImportFrom) and node.module in paths:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (inside & set(paths)) or {node.module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other; empty where none do."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other():
    assert circle(internal_imports()) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
