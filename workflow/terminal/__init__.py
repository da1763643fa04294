"""Output to the terminal: tables, JSON and progress bars."""
