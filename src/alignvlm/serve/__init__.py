"""Serving: a model behind an HTTP interface, a web page, or over many files."""
