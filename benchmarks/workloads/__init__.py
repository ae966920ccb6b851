"""Trainings to measure: they run in the pipeline's container and, the same files, beside it."""
