"""The commands of voxlift, one module each; importing one loads nothing heavy."""
