"""retbench: is RetNet a successor to the Transformer? Matched models, one harness, every number traceable."""

__version__ = "0.1.0"
