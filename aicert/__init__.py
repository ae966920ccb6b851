"""aicert: make AI traceable."""

__version__ = "0.1.0"
