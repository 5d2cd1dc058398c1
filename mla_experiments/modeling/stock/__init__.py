"""To and from other people's forms of a model, one a file; what is no checkpoint folder of transformers."""
