"""Super-resolution of many volumes, from file to file."""
