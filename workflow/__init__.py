"""How tasks become a run: command line, cluster, tracking, report."""
