"""In which clients an exported checkpoint of a form serves, and what it takes: `docs/interop.md` says what was seen."""

from transformers import PreTrainedConfig

VLLM_LATENTS = (512, 64)  # what vLLM's MLA kernel is built for
OF_LLAMA_3 = 8192  # what CTranslate2 takes for the original length, whatever is said
CTRANSLATE2_ROPES = ("default", "linear", "llama3", "longrope")


def serving(stock: PreTrainedConfig) -> dict[str, str]:
    """Return what there is to say of each client that does not load a stock model of this form just so.

    Args:
        stock: the config of an export.
    """
    rope, latent = stock.rope_parameters, stock.model_type == "deepseek_v3"
    said = {}
    if latent:
        widths = (stock.kv_lora_rank, stock.qk_rope_head_dim)
        if widths != VLLM_LATENTS:
            shown = " + ".join(map(str, widths))
            said["vLLM"] = f"with VLLM_MLA_DISABLE=1, since its MLA kernel knows latents of 512 + 64, not {shown}"
        said["CTranslate2"] = "not at all; it has no DeepSeek"
    elif rope["rope_type"] not in CTRANSLATE2_ROPES:
        said["CTranslate2"] = f"not at all; it has no rope_type={rope['rope_type']}"
    elif rope["rope_type"] == "llama3" and rope["original_max_position_embeddings"] != OF_LLAMA_3:
        length = rope["original_max_position_embeddings"]
        said["CTranslate2"] = f"wrongly; it takes original_max_position_embeddings for {OF_LLAMA_3}, not {length}"
    if stock.model_type == "qwen2":
        said["transformers 5"] = (
            "with its tokenizer by PreTrainedTokenizerFast.from_pretrained, since AutoTokenizer splits text of a Qwen2 "
            "as Qwen's own, whatever tokenizer.json says"
        )
    return said
