"""The machine of a worker: devices, memory and what TensorFlow can do on it."""
