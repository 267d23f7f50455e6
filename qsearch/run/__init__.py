"""Orchestration: broker, executors, the flow of a study, and its results.

Import from the modules: they differ in what they load (``broker`` needs neither torch nor Ray).
"""
