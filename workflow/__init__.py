"""Runs composed of tasks: command line, cluster, tracking, report."""
