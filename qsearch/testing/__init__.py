"""Conformance suites that a plug-in author subclasses, one module per kind of plug-in."""
