"""Arithmetic of transposed convolutions, and the upsampler that a chain of them makes."""
