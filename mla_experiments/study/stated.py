"""What a study's file may state: the fields of its own, and where the others are listed.

`mla-experiments study --help` shows this, and `fields.py` refuses what is neither here nor a flag of training.
"""

OWN = {  # which a study reads itself
    "seeds": "one or a list; fresh ones are compared, another tunes",
    "learning_rate": "one, a list to try, or of each mechanism: {mha: 1.0e-3, mla: [1.0e-3, 3.0e-3]}",
    "match": "none, parameters, flops or cache: what is held equal",
    "cache_bytes_per_token": "with match: cache, the budget, in single precision",
    "tuning": "trials: N, and for each field choices [a, b] or a range [1.0e-3, 1.0e-2]",
}
DATA = {
    "corpus": "as `data --corpus`: auto, a path, hub:NAME, synthetic:NAME",
    "text_column": "of a table",
    "vocab_size": "entries of the tokenizer, or auto",
    "shuffle_seed": "of the order of rows",
}
FIELDS = {
    **DATA,
    "corpus.FIELD": "of a synthetic corpus (docs/recall.md); a list sweeps it",
    "attention": "mechanisms, by name: [mha, gqa, mqa, mla], or mla+mha over the layers",
    "attention.OPTION": "of those mechanisms that have it: attention.kv_lora_rank: [64, 128]",
    **OWN,
    "preset": "sizes to start from: demo or reference",
    "any flag of train": "hidden_size, train_tokens, optimizer ... (train --help, --help-all); a list sweeps it",
}
