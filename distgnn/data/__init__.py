"""From names, files and logs to tables of interactions."""
