"""What all experiments share, from the command line to the report."""
