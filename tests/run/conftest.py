from conftest_run import open_broker

__all__ = ["open_broker"]
