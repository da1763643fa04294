"""Checks of the machine (`voxlift doctor`) and of a run before it starts (`voxlift dry-run`)."""
