"""Files and folders: atomic writes, compression, the names and destinations of outputs."""
