"""What a run is: typed configuration and its presets."""
