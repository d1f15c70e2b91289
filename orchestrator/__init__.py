"""How a serving stack is measured."""

__version__ = "0.1.0"
