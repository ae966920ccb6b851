"""The measured program, and what starts it: the TPM, inputs, container, log, quote, and the API."""
