"""Stage tables and the notation of stages for the command line."""
