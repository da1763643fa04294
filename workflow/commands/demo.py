"""`voxlift demo`."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.commands.options import Overrides
from workflow.terminal.console import JsonOption, screen


def demo(
    volume: Annotated[
        Path | None, typer.Option(help="Volume to work on, instead of the MNI152 template of the nilearn package.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/demo"),
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on a real brain: degrade, train, super-resolve, score, record."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import waiting

        with waiting(opened.console, "Loading voxlift"):
            from configs.load import load_config
            from workflow.demo import run_demo, summary
            from workflow.train.run import only_writer

        config = load_config("demo", overrides or [])
        if volume is not None:
            config = config.model_copy(update={"data": config.data.model_copy(update={"volumes": (volume,)})})
        with only_writer(out, (), resume=False, overwrite=True):  # the same command gives the same files
            report, evaluation = run_demo(config, out, opened.console)
        opened.show(report, *summary(report, evaluation))
