"""`voxlift presets`."""

from workflow.terminal.console import JsonOption, screen


def presets(as_json: JsonOption = False) -> None:
    """List the configurations that come with voxlift, to train or to start from."""
    with screen(as_json) as opened:
        from configs.load import preset_descriptions

        described = preset_descriptions()
        width = max(map(len, described))
        opened.show(
            {"presets": described},
            *(f"{name:{width}}  {description}" for name, description in described.items()),
            "Train one with `voxlift train NAME`.",
        )
