"""What the network is: shapes, layers, losses. Knows no file, no Ray and no MLflow."""
