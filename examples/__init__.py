"""Examples: trainings that read as tutorials, and the demo."""
