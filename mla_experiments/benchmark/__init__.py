"""Speed and memory beside transformers' own models, one measurement a file.

Each has `Arguments` (its flags), `measure(Arguments) -> rows` and, where a figure says more than a table, `FIGURE`:
which columns of the rows are its axes, lines and panels (see `report.figures.draw_rows`).
"""

MEASUREMENTS = {  # what is measured, as the command line calls it, and the file that measures it
    "training": "training", "prefill": "prefill", "decode": "decode", "generation": "generation_time", "core": "core",
    "crossover": "crossover", "cache": "cache_size", "packing": "preparation", "drawing": "drawing",
    "conversion": "conversion_memory", "prediction": "prediction", "parallel": "parallel", "load": "load",
    "assisted": "assisted", "all": "everything",
}  # fmt: skip
