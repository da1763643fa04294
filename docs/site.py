"""Hooks of MkDocs: pages that come from the code or from files outside of docs/, and the links between all of them."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from griffe import Docstring, DocstringSectionKind
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from typer.testing import CliRunner

from configs.load import preset_descriptions
from configs.schema import RunConfig
from workflow.cli import COMMANDS, app

ROOT = Path(__file__).parents[1]
FRONT, HOME = "README.md", "index.md"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages, the front page, and each file of the repository that a page links to."""
    made = {"reference/configuration.md": configuration(), "reference/commands.md": commands()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    waiting = [FRONT, *(f"docs/{file.src_uri}" for file in files.documentation_pages() if file.src_uri not in made)]
    known = set(waiting)
    for name in waiting:  # grows while it is walked
        linked = {target for target in _targets(name) if (ROOT / target).is_file()}
        for target in sorted(linked - known):
            known.add(target)
            if target.endswith(".md"):
                waiting.append(target)
    for name in sorted(known):
        if not name.startswith("docs/"):
            files.append(File.generated(config, _place(name), content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead the links of a page, which hold in the repository, to their places in the site."""
    here = page.file.src_uri
    source = FRONT if here == HOME else here if (ROOT / here).is_file() else f"docs/{here}"

    def moved(found: re.Match[str]) -> str:
        target = _place(_joined(source, found[1]))
        return os.path.relpath(target, PurePosixPath(here).parent) if files.get_file_from_path(target) else found[1]

    fences = FENCED.findall(markdown)
    prose = [LINK.sub(moved, part) for part in FENCED.split(markdown)]
    return "".join(part for pair in zip(prose, [*fences, ""], strict=True) for part in pair)


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> None:  # noqa: ARG001
    """Require a place in the navigation for every page under docs/."""
    placed = {page.file.src_uri for page in nav.pages}
    lost = [file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    if missing := sorted(set(lost) - placed):
        raise SystemExit(f"mkdocs.yml gives these pages no place: {', '.join(missing)}")


def _targets(name: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    for target in LINK.findall(FENCED.sub("", (ROOT / name).read_text())):
        yield _joined(name, target)


def _joined(source: str, target: str) -> str:
    return os.path.normpath(PurePosixPath(source).parent / target)


def _place(name: str) -> str:
    """Return where a file of the repository lies in the site.

    >>> _place("README.md"), _place("docs/cluster.md"), _place("models/weights/README.md")
    ('index.md', 'cluster.md', 'models/weights/README.md')
    """
    return HOME if name == FRONT else name.removeprefix("docs/")


def commands() -> str:
    """Write the reference of the command line, from its own help."""
    parts = ["# Commands", "", "The text of `--help` of each command, as it is printed.", ""]
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb"})
    for name in COMMANDS:
        done = runner.invoke(app, [name, "--help"], prog_name="voxlift")
        if done.exit_code:
            raise SystemExit(f"voxlift {name} --help: {done.output}")
        parts += [f"## voxlift {name}", "", "```text", done.output.strip("\n"), "```", ""]
    return "\n".join(parts)


def configuration() -> str:
    """Write the reference of the configuration, from the schema and the docstrings of its sections."""
    presets = "\n".join(f"- `{name}`: {text}" for name, text in preset_descriptions().items())
    parts = [
        "# Configuration",
        "A run is described by a YAML file, or by a preset: a file that comes with voxlift. Every key has a default"
        " except `degradation`; an unknown key is an error. `--set section.key=value` overrides a key. `voxlift schema`"
        " prints the JSON schema, by which editors check and complete a file.",
        f"## Presets\n\n{presets}",
        *_sections(RunConfig),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(model: type[BaseModel], seen: set[str] | None = None) -> Iterator[str]:
    """Yield a section for a part of the configuration and for each part inside it, each once."""
    seen = set() if seen is None else seen
    if model.__name__ in seen:
        return
    seen.add(model.__name__)
    summary, described = _docstring(model)
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for name, known in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else _default(known.get("default"))
        text = described.get(name, "")
        if name not in schema.get("required", ()) and "$ref" in str(known) and known.get("default") is not None:
            default = ""
        for part in _parts(model.model_fields[name].annotation):
            text = text or _docstring(part)[0]
        cells = (f"`{name}`", _kind(known, definitions), default, text)
        rows.append("| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |")
    yield f"## {model.__name__}\n\n{summary}\n\n" + "\n".join(rows)
    for field in model.model_fields.values():
        for part in _parts(field.annotation):
            yield from _sections(part, seen)


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - as Python writes types
    """Yield the models in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _parts(inner)


def _docstring(model: type[BaseModel]) -> tuple[str, Mapping[str, str]]:
    """Return the summary of a class, and the description of each attribute or argument."""
    summary, described = "", dict[str, str]()
    for section in Docstring(model.__doc__ or "").parse("google", warn_missing_types=False):
        if section.kind is DocstringSectionKind.text:
            summary = section.value
        elif section.kind in {DocstringSectionKind.attributes, DocstringSectionKind.parameters}:
            described |= {one.name: one.description for one in section.value}
    return summary, described


def _default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | dict) and any(isinstance(one, dict) for one in value):
        return "see the presets"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(known: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say which values a key takes."""
    if reference := known.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if choices := known.get("enum"):
        return ", ".join(f"`{one}`" for one in choices)
    if options := known.get("anyOf"):
        return " or ".join(_kind(one, definitions) for one in options if one.get("type") != "null") or "none"
    limits = {"exclusiveMinimum": "over", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    bounds = [f"{word} {known[key]:g}" for key, word in limits.items() if key in known]
    kind = str(known.get("const", known.get("type", "any")))
    if kind == "array":
        inner = known.get("prefixItems")
        items = (
            f"{len(inner)} x {_kind(inner[0], definitions)}" if inner else _kind(known.get("items", {}), definitions)
        )
        return f"list of {items}"
    return " ".join([kind, *bounds])
