"""Datasets that come with the package, one folder each, and the scripts that build them."""
