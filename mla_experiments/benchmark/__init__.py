"""Speed and memory beside transformers' own models, one measurement a file.

Each has `Arguments` (its flags), `measure(Arguments) -> rows` and, where a figure says more than a table, `FIGURE`:
which columns of the rows are its axes, lines and panels (see `report.figures.draw_rows`).
"""

MEASUREMENTS = (
    "training", "prefill", "decode", "generation", "core", "crossover", "cache", "packing", "conversion", "prediction",
    "parallel", "load",
)  # fmt: skip
