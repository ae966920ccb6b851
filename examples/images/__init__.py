"""Images for the examples and the tests."""
