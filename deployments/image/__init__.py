"""The measured operating system image: how it is built, and what a machine that boots it measures.

`build` makes the image, `predict` says from its files alone what the PCRs will be, `reference`
writes that down as the signed document that policies use. `formats` holds the file formats.
"""
