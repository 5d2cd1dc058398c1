"""Continue a text with a trained model, through transformers' own `generate()`."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, TextStreamer, set_seed

from ..data import beginning_of_text, whole_text
from ..errors import UserError
from ..kernels.latent import force_backend
from ..modeling import DecoderForCausalLM, set_cache_dtype, set_weight_dtype
from .results import find_models, load_with_tokenizer

COLDEST = 1e-6  # what logits are divided by without becoming infinite


class AfterPrompt(TextStreamer):
    """Prints the prompt as it was typed, once it is taken, and then what is made, token by token."""

    prompt = ""

    def put(self, value: torch.Tensor) -> None:
        """Take tokens, those of the prompt first."""
        if self.next_tokens_are_prompt:
            print(self.prompt, end="", flush=True)
        super().put(value)


def print_continuation(
    model: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    backend: str | None,
    cache_dtype: str | None,
    weight_dtype: str | None,
    weights_dir: str,
) -> None:
    """Print the prompt and its continuation, token by token as they are made.

    Args:
        model: folder of a trained model, or its name under `weights_dir`.
        prompt: the text to continue; empty for the start of a document.
        max_new_tokens: length of the continuation.
        temperature: of the sampling; 0 always takes the likeliest token.
        top_k: sample among so many likeliest tokens.
        seed: of the sampling.
        backend: of MLA's decoding; None for the fastest.
        cache_dtype: in which the cache is kept, see `modeling.set_cache_dtype`; None for the model's own.
        weight_dtype: in which weights are kept, see `modeling.set_weight_dtype`.
        weights_dir: holds the trained models.

    Raises:
        UserError: a prompt that is no Unicode text, no such model, prompt and continuation beyond its context, a
            backend that cannot run here, an unknown cache_dtype or weight_dtype, or a temperature next to 0.
    """
    whole_text(prompt, "prompt")
    force_backend(backend)
    (folder,) = find_models([model], Path(weights_dir))
    decoder, tokenizer = load_with_tokenizer(folder)
    set_cache_dtype(decoder, cache_dtype)
    set_weight_dtype(decoder, weight_dtype)
    streamer = AfterPrompt(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.prompt = prompt
    continuation(decoder, tokenizer, prompt, max_new_tokens, temperature, top_k, seed, streamer)


def continuation(
    decoder: DecoderForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    streamer: TextStreamer | None = None,
) -> str:
    """Return what a model says after a prompt; arguments and errors are those of `print_continuation`."""
    whole_text(prompt, "prompt")
    tokens = [beginning_of_text(tokenizer), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    context = decoder.config.max_position_embeddings
    if 0 < temperature < COLDEST:
        raise UserError(f"temperature={temperature} must be 0, which takes the likeliest token, or at least {COLDEST}")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if len(tokens) + max_new_tokens > context:
        raise UserError(
            f"max_new_tokens={max_new_tokens} after a prompt of {len(tokens)} tokens is more than the context of the "
            f"model, {context}; shorten one of them"
        )
    set_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {"do_sample": False}
    )
    inputs = torch.tensor([tokens], device=decoder.device)
    output = decoder.generate(inputs, max_new_tokens=max_new_tokens, streamer=streamer, **sampling)
    return str(tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True))
