from tests.train.conftest import shallow

__all__ = ["shallow"]  # a fixture of the trainer's tests
