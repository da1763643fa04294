"""Scores: the protocol, PSNR and SSIM, and measures that need no reference."""
