"""`winnow demo`: the whole job on scikit-learn's handwritten digits, through the same API that everyone uses."""

from service.demo.run import run_demo

__all__ = ["run_demo"]
