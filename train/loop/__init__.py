"""What every stage runs on: its options, files of arrays, precision, processes, and a run that is logged, saved and
resumed."""
