"""Where the log and its readers' progress are kept."""
