"""Long processes: steps whose results are journalled, so that any worker can go on, and undone last first when one can't go on."""
