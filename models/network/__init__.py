"""The restorer and the analysis of its layer graph: losses, gradients, receptive field, cost."""
