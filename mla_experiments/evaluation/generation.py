"""Continue a text with a trained model, through transformers' own `generate()`."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, TextStreamer, set_seed

from ..data import beginning_of_text, whole_text
from ..errors import UserError
from ..kernels.latent import force_backend
from ..modeling import DecoderForCausalLM
from .results import find_models, load_with_tokenizer


def print_continuation(
    model: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    backend: str | None,
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
        weights_dir: holds the trained models.

    Raises:
        UserError: a prompt that is no Unicode text, no such model, prompt and continuation beyond its context, or a
            backend that cannot run here.
    """
    whole_text(prompt, "prompt")
    force_backend(backend)
    (folder,) = find_models([model], Path(weights_dir))
    decoder, tokenizer = load_with_tokenizer(folder)
    prompt_tokens(decoder, tokenizer, prompt, max_new_tokens)  # refuses before anything is said
    print(prompt, end="", flush=True)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
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
    tokens = prompt_tokens(decoder, tokenizer, prompt, max_new_tokens)
    set_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {"do_sample": False}
    )
    inputs = torch.tensor([tokens], device=decoder.device)
    output = decoder.generate(inputs, max_new_tokens=max_new_tokens, streamer=streamer, **sampling)
    return tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)


def prompt_tokens(
    decoder: DecoderForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, max_new_tokens: int
) -> list[int]:
    """Return the tokens of a prompt, that of the beginning of a text first.

    Raises:
        UserError: a prompt that is no Unicode text, or that goes beyond the context with what is to follow it.
    """
    whole_text(prompt, "prompt")
    tokens = [beginning_of_text(tokenizer), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    context = decoder.config.max_position_embeddings
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if len(tokens) + max_new_tokens > context:
        raise UserError(
            f"max_new_tokens={max_new_tokens} after a prompt of {len(tokens)} tokens is more than the context of the "
            f"model, {context}; shorten one of them"
        )
    return tokens
