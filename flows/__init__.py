"""Flows, one a module, and `aicert run`, which runs one without a server."""
