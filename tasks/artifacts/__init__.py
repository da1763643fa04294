"""Models and artifacts: their contracts, manifests, cards and files."""
