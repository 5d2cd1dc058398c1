"""Train, compare and decode attention mechanisms: MHA, GQA, MQA and MLA."""

__version__ = "0.1.0"
