"""Linear imaging operators: resampling, degradation and data consistency."""
