"""The network: shapes, layers, losses. Knows no file, no Ray and no MLflow."""
