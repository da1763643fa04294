"""The commands of voxlift, one module each, with their work imported inside: `--help` needs none of it."""
