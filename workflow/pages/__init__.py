"""HTML pages and pictures that open offline."""
