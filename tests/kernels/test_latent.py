"""Attention over latents, by every backend that this machine can run, against the dense formula in float64."""

import itertools
import re
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.errors import UserError
from mla_experiments.kernels import attend_latents, latent, sdpa
from mla_experiments.kernels.paged import PAGE, page_table, paged
from mla_experiments.modeling import device


@pytest.fixture(autouse=True)
def _free_choice():
    yield
    latent.force_backend(None)


def dense(query, latents, value_width, mask, scale):
    """The formula, one query at a time."""
    batch, heads, new, _ = query.shape
    output = torch.zeros(batch, heads, new, value_width, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(new):
                scores = latents[b].double() @ query[b, h, t].double() * scale
                seen = mask[b if mask.shape[0] > 1 else 0, 0, t]
                if seen.any():
                    weights = torch.softmax(scores[seen], dim=0)
                    output[b, h, t] = weights @ latents[b, seen, :value_width].double()
    return output


def check(batch, heads, new, past, rank, rotary, padded, dtype, on="cpu"):
    """Attend with boolean, additive and no mask; rows of unequal lengths, up to rows that see nothing, where padded."""
    total = past + new
    query = torch.randn(batch, heads, new, rank + rotary, dtype=dtype)
    buffer = torch.randn(batch, total + 5, rank + rotary, dtype=dtype)  # a view of a longer buffer, as a cache gives
    mask = torch.ones(new, total, dtype=torch.bool).tril(past)[None, None].repeat(batch, 1, 1, 1)
    if padded:
        for row in range(batch):
            mask[row, ..., : (row * total) // 2] = False
    scale = 2 * (rank + rotary) ** -0.5
    expected = dense(query, buffer[:, :total], rank, mask, scale)
    masks = [mask, torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))]
    if not padded and new in (1, total):  # the whole context; the causal prompt
        masks.append(None)
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    for given_mask in masks:
        there = given_mask if given_mask is None else given_mask.to(on)
        output = attend_latents(query.to(on), buffer.to(on)[:, :total], rank, there, scale)
        assert output.dtype is dtype
        torch.testing.assert_close(output.double().cpu(), expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3), heads=st.sampled_from([1, 2, 5]), new=st.sampled_from([1, 2, 4, sdpa.FEW_TOKENS + 1]),
    past=st.integers(0, 40), rank=st.sampled_from([1, 8, 12]), rotary=st.sampled_from([0, 2, 6]), padded=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_torch_equals_the_dense_formula(batch, heads, new, past, rank, rotary, padded, dtype):
    latent.force_backend("torch")
    check(batch, heads, new, past, rank, rotary, padded, dtype)


@pytest.mark.skipif(latent.reasons()["c"] is not None, reason=f"c: {latent.reasons()['c']}")
@settings(max_examples=60)
@given(
    batch=st.integers(1, 3), heads=st.sampled_from([1, 3, 16, 33]), new=st.integers(1, 4), past=st.integers(0, 300),
    rank=st.sampled_from([1, 8, 37, 128]), rotary=st.sampled_from([0, 2, 24]), padded=st.booleans(),
    threads=st.integers(1, 3),
)  # fmt: skip
def test_c_equals_the_dense_formula(batch, heads, new, past, rank, rotary, padded, threads):
    latent.force_backend("c")
    torch.set_num_threads(threads)
    check(batch, heads, new, max(1, past), rank, rotary, padded, torch.float32)
    torch.set_num_threads(1)


@pytest.mark.skipif(latent.reasons()["triton"] is not None, reason=f"triton {latent.reasons()['triton']}")
class TestTriton:
    """On a GPU, where there is one; else by Triton's interpreter, which `conftest.py` asks for."""

    @settings(max_examples=15)
    @given(
        batch=st.integers(1, 3), heads=st.sampled_from([1, 3, 16, 33]), new=st.integers(1, 4), past=st.integers(0, 150),
        rank=st.sampled_from([32, 48, 128]), rotary=st.sampled_from([0, 16, 24]), padded=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    )  # fmt: skip
    def test_equals_the_dense_formula(self, batch, heads, new, past, rank, rotary, padded, dtype):
        latent.force_backend("triton")
        check(batch, heads, new, past, rank, rotary, padded, dtype, device())

    @pytest.mark.parametrize(("heads", "rank", "rotary"), [(128, 512, 64), (128, 32, 0), (1, 512, 0), (1, 32, 64)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_corners_of_its_range(self, heads, rank, rotary, dtype):
        latent.force_backend("triton")
        check(2, heads, 1, 130, rank, rotary, True, dtype, device())

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"dtype": torch.float64}, "it knows f32, bf16 and f16, not torch.float64"),
            ({"rank": 600}, "latents of 600 are wider than 512"),
            ({"requires_grad": True}, "it reads plain tensors alone: none with gradients"),
        ],
    )
    def test_what_it_cannot_serve_is_one_sentence(self, change, reason):
        rank = change.pop("rank", 32)
        latent.force_backend("triton")
        query = torch.randn(1, 2, 1, rank, **change)
        with pytest.raises(UserError, match=f"backend=triton cannot serve this attention: {reason}"):
            attend_latents(query, torch.randn(1, 3, rank, dtype=query.dtype), rank, None, 1.0)


def test_scores_of_a_long_context_are_never_in_memory_whole():
    heads, context = 16, 65_536
    query, latents = torch.randn(1, heads, 1, 24), torch.randn(1, context, 24)
    padding = torch.ones(1, 1, 1, context, dtype=torch.bool)
    with torch.profiler.profile(profile_memory=True) as profile:
        attend_latents(query, latents, 16, padding, 0.2)
    assert 0 < max(event.cpu_memory_usage for event in profile.events()) < heads * context * query.element_size() / 2


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_scores_do_not_overflow(size):
    query, latents = torch.full((1, 1, 1, 4), size), torch.randn(1, 9, 4)
    assert attend_latents(query, latents, 4, None, 1.0).isfinite().all()


def paged_attention(queries, pages, table, lengths, rank, scale, causal):
    """What the serving kernels document: `[B, T, H, W]` over pages; causal means aligned at the end."""
    outputs = []
    for query, numbers, length in zip(queries, table, lengths, strict=True):
        latents = pages[numbers.long()].flatten(0, 1)[: int(length)].double()
        scores = torch.einsum("thw,sw->hts", query.double(), latents) * scale
        if causal:
            new = query.shape[0]
            scores = scores.masked_fill(~torch.ones(new, int(length), dtype=torch.bool).tril(int(length) - new), -1e30)
        outputs.append(torch.einsum("hts,sr->thr", scores.softmax(-1), latents[:, :rank]).to(queries.dtype))
    return torch.stack(outputs)


def flash_mla_stand_in():
    """FlashMLA's documented interface, computed densely."""
    module = types.ModuleType("flash_mla")

    def get_mla_metadata(cache_seqlens, num_q_tokens_per_head_k, num_heads_k):
        assert cache_seqlens.dtype is torch.int32 and num_heads_k == 1
        return torch.zeros(1, 8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def flash_mla_with_kvcache(
        q, k_cache, block_table, cache_seqlens, head_dim_v, metadata, num_splits, softmax_scale=None, causal=False
    ):
        assert q.is_contiguous() and k_cache.shape[1:] == (64, 1, 576) and block_table.dtype is torch.int32
        pages = k_cache.squeeze(2)
        return paged_attention(q, pages, block_table, cache_seqlens, head_dim_v, softmax_scale, causal), None

    module.get_mla_metadata, module.flash_mla_with_kvcache = get_mla_metadata, flash_mla_with_kvcache
    return {"flash_mla": module}


def flashinfer_stand_in():
    """FlashInfer's documented interface, computed densely."""

    class BatchMLAPagedAttentionWrapper:
        def __init__(self, float_workspace_buffer):
            assert float_workspace_buffer.numel() * float_workspace_buffer.element_size() >= 128 << 20

        def plan(self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_heads, head_dim_ckv, head_dim_kpe, page_size,
                 causal, sm_scale, q_data_type, kv_data_type):  # fmt: skip
            assert all(part.dtype is torch.int32 for part in (qo_indptr, kv_indptr, kv_indices, kv_len_arr))
            self.table = torch.stack([kv_indices[a:b] for a, b in itertools.pairwise(kv_indptr)])
            self.new, self.lengths, self.rest = int(qo_indptr[1]), kv_len_arr, (head_dim_ckv, sm_scale, causal)

        def run(self, q_nope, q_pe, ckv_cache, kpe_cache):
            query = torch.cat((q_nope, q_pe), dim=-1).unflatten(0, (-1, self.new))
            pages = torch.cat((ckv_cache, kpe_cache), dim=-1)
            return paged_attention(query, pages, self.table, self.lengths, *self.rest).flatten(0, 1)

    package, module = types.ModuleType("flashinfer"), types.ModuleType("flashinfer.mla")
    package.mla, module.BatchMLAPagedAttentionWrapper = module, BatchMLAPagedAttentionWrapper
    return {"flashinfer": package, "flashinfer.mla": module}


@pytest.mark.parametrize(("name", "stand_in"), [("flashmla", flash_mla_stand_in), ("flashinfer", flashinfer_stand_in)])
class TestAdapters:
    """The serving kernels need a GPU; here their documented interfaces are computed densely."""

    @pytest.fixture
    def backend(self, name, stand_in, monkeypatch):
        for module, content in stand_in().items():
            monkeypatch.setitem(sys.modules, module, content)
        monkeypatch.delitem(sys.modules, "mla_experiments.kernels" + latent.BACKENDS[name], raising=False)
        yield latent.load(name)
        sys.modules.pop("mla_experiments.kernels" + latent.BACKENDS[name])

    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize(("new", "past"), [(1, 0), (1, 63), (1, 64), (1, 200), (5, 0)])
    @pytest.mark.parametrize("room", [0, 7, 128])
    def test_equals_the_dense_formula(self, backend, batch, new, past, room):
        total = past + new
        query = torch.randn(batch, 4, new, 576).bfloat16()
        latents = torch.randn(batch, total + room, 576).bfloat16()[:, :total]
        mask = torch.ones(1, 1, new, total, dtype=torch.bool).tril(past)
        output = backend.attend_latents(query, latents, 512, None, 0.1)
        torch.testing.assert_close(output.double(), dense(query, latents, 512, mask, 0.1), atol=3e-2, rtol=3e-2)

    @pytest.mark.parametrize(
        ("width", "dtype", "mask", "reason"),
        [
            (144, torch.bfloat16, None, r"it knows latents of 512 \+ 64"),
            (576, torch.float32, None, "it knows bf16 and f16"),
            (576, torch.bfloat16, torch.ones(1, 1, 1, 9), "it takes no mask"),
        ],
    )
    def test_says_what_it_cannot_serve(self, backend, width, dtype, mask, reason):
        query, latents = torch.randn(1, 2, 1, width, dtype=dtype), torch.randn(1, 9, width, dtype=dtype)
        assert re.match(reason, backend.why_not(query, latents, width - 64, mask))

    def test_needs_a_gpu(self, backend, name):
        if not torch.cuda.is_available():
            with pytest.raises(UserError, match=f"backend={name} cannot run here: needs a CUDA device"):
                latent.force_backend(name)


@pytest.mark.parametrize("name", ["flashmla", "flashinfer"])
def test_a_backend_whose_library_is_missing_is_refused_by_its_name(name):
    if latent.reasons()[name] is None:
        pytest.skip(f"{name} can run here")
    with pytest.raises(UserError, match=f"backend={name} cannot run here: .* is not installed"):
        latent.force_backend(name)


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match=f"backend=cuda is unknown; choose one of {', '.join(latent.BACKENDS)}"):
        latent.force_backend("cuda")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("capacity", [PAGE, 3 * PAGE, 3 * PAGE + 1])
@pytest.mark.parametrize("context", [1, PAGE - 1, PAGE])
def test_pages_hold_the_cache_and_are_a_view_where_whole_pages_lie_in_the_buffer(batch, capacity, context):
    buffer = torch.randn(batch, capacity, 6)
    pages, apart = paged(buffer[:, :context])
    for row, numbers in enumerate(page_table(batch, context, apart, buffer.device)):
        assert pages[numbers.long()].flatten(0, 1)[:context].equal(buffer[row, :context])
    assert (pages.data_ptr() == buffer.data_ptr()) == (batch == 1 or capacity % PAGE == 0)
