"""The demo: train, restore and score on one volume."""
