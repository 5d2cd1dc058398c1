"""The attention in C: exact against float64 on both of its vector widths, honest about NaN compilers."""

import platform

import pytest
import torch

from mla_experiments.benchmark.measure import flops_of
from mla_experiments.kernels import attend, attend_turned, sdpa, shared_keys
from mla_experiments.kernels.compiling import compiled

pytestmark = pytest.mark.skipif(
    shared_keys.why_not_here() is not None, reason=f"attention in C: {shared_keys.why_not_here()}"
)


def formula(query, key, value, mask, scale):
    """Everything at once in float64; `key` and `value` are `[B, 1, S, ...]`."""
    scores = query.double() @ key.double().mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ value.double()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of another kind")
def test_processors_with_shorter_vectors_get_the_same_answer(monkeypatch, tmp_path):
    shorter = compiled("shared_keys", "x86-64-v3", tmp_path)
    monkeypatch.setattr(shared_keys, "library", lambda _: shorter)
    query, key, value = torch.randn(3, 11, 2, 20), torch.randn(3, 1, 301, 20), torch.randn(3, 1, 301, 13)
    mask = torch.rand(3, 1, 2, 301) < 0.5
    mask[0, 0, 1] = False  # sees nothing
    for given in (None, mask):
        output = shared_keys.attend(query, key, value, given, 0.3)
        torch.testing.assert_close(output.double(), formula(query, key, value, given, 0.3), atol=2e-6, rtol=1e-5)
    query, tail = torch.randn(3, 12, 2, 24), torch.randn(3, 301, 4)
    key, value = torch.randn(3, 2, 301, 20), torch.randn(3, 2, 301, 13)  # six heads for each part
    keys = torch.cat((key, tail.unsqueeze(1).expand(-1, 2, -1, -1)), dim=-1).repeat_interleave(6, dim=1)
    output = shared_keys.attend(query, key, value, mask, 0.3, tail)
    expected = formula(query, keys, value.repeat_interleave(6, dim=1), mask, 0.3)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    assert shorter.lanes() == 8


@pytest.mark.parametrize("parts, num_heads, num_new", [(1, 3, 2), (2, 16, 1), (4, 16, 1), (3, 60, 1), (2, 36, 3)])
@pytest.mark.parametrize("widths", [(8, 5, 16), (24, 16, 24), (16, 0, 16), (7, 3, 37)])
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_have_keys_of_their_own_whose_tail_they_share(parts, num_heads, num_new, widths, threads):
    """Parts lie side by side in a token's row, then their tail; or each in memory of its own."""
    width, tail, value_width = widths
    whole = max(width, value_width)
    rows = torch.randn(2, 333, parts * whole + tail)[:, :301]
    tied = rows[..., : parts * whole].unflatten(-1, (parts, whole)).transpose(1, 2)  # [B, P, S, D]
    mask = torch.rand(2, 1, num_new, 301) < 0.5
    mask[0, 0, 0] = False  # sees nothing
    query = torch.randn(2, num_heads, num_new, width + tail)
    torch.set_num_threads(threads)
    for parted in (tied, tied.contiguous()):
        key, value, ends = parted[..., :width], parted[..., :value_width], rows[..., parts * whole :]
        keys = torch.cat((key, ends.unsqueeze(1).expand(-1, parts, -1, -1)), dim=-1)
        repeated = [part.repeat_interleave(num_heads // parts, dim=1) for part in (keys, value)]
        for given in (None, mask):
            output = shared_keys.attend(query, key, value, given, 0.3, ends if tail else None)
            torch.testing.assert_close(output.double(), formula(query, *repeated, given, 0.3), atol=2e-6, rtol=1e-5)
    torch.set_num_threads(1)


@pytest.mark.parametrize("num_heads", [16, 32, 71])
def test_heads_that_share_one_key_decode_in_c_and_in_pytorch_alike(num_heads):
    query, buffer = torch.randn(2, num_heads, 1, 24), torch.randn(2, 1, 700, 24)  # a cache with room to grow
    key, value = buffer[:, :, :613], buffer[:, :, :613, 3:11]
    with torch.profiler.profile() as profile:
        output = attend(query, key, value, None, 0.2)
    ran = any(event.name == "mla_experiments::attend_shared_keys" for event in profile.events())
    assert ran == shared_keys.fills_lanes(num_heads)
    torch.testing.assert_close(output, sdpa.attend(query, key, value, None, 0.2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", [slice(0, 4), slice(4, 6)], ids=["value", "key alone"])
def test_nan_in_the_cache_is_not_hidden(part):
    query, latents = torch.randn(1, 16, 1, 6), torch.randn(1, 1, 200, 6)
    latents[0, 0, 77, part] = torch.nan
    assert shared_keys.attend(query, latents, latents[..., :4], None, 1.0).isnan().any()


def test_scores_far_apart_neither_overflow_nor_lose_the_largest():
    query, latents = torch.ones(1, 16, 1, 4), torch.randn(1, 1, 1000, 4)
    for place in (0, 500, 999):
        latents[0, 0, place] = 1e4
        output = shared_keys.attend(query, latents, latents, None, 1.0)
        torch.testing.assert_close(output.double(), formula(query, latents, latents, None, 1.0))
        latents[0, 0, place] = -1e4


def test_its_operations_are_counted():
    query, latents = torch.randn(2, 16, 3, 6), torch.randn(2, 1, 50, 6)
    mask = torch.ones(1, 1, 3, 50, dtype=torch.bool)
    counted = flops_of(lambda: shared_keys.attend(query, latents, latents[..., :4], mask, 1.0))
    assert counted == 2 * 2 * 16 * 3 * 50 * (6 + 4)


@pytest.mark.parametrize("groups, num_heads, num_new", [(1, 16, 1), (4, 16, 1), (3, 60, 2), (2, 6, 3)])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_keys_are_turned_as_they_are_read(groups, num_heads, num_new, interleaved, threads):
    """As pairs are complex numbers, times e^iθ, in double precision; angles of a sequence's own, or one for all."""
    torch.set_num_threads(threads)
    kept = torch.randn(2, groups, 333, 24)[:, :, :301]
    query, mask = torch.randn(2, num_heads, num_new, 24), torch.rand(2, 1, num_new, 301) < 0.5
    mask[0, 0, 0] = False  # sees nothing
    for batch, weight in ((1, None), (2, torch.rand(24) + 0.5)):
        angles = torch.randn(batch, 301, 12, dtype=torch.float64)
        weighed = kept.double() * (1 if weight is None else weight.double())
        pairs = weighed.unflatten(-1, (12, 2)) if interleaved else weighed.unflatten(-1, (2, 12)).mT
        turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        keys = torch.cat((turned.real, turned.imag), dim=-1).repeat_interleave(num_heads // groups, dim=1)
        values = kept.repeat_interleave(num_heads // groups, dim=1)
        tables = angles.cos().float(), angles.sin().float()
        for given in (None, mask) if num_new == 1 else (mask,):
            expected = formula(query, keys, values, given, 0.3)
            output = shared_keys.attend_turned(query, kept, kept, given, 0.3, tables, interleaved, weight)
            torch.testing.assert_close(output.double(), expected, atol=3e-6, rtol=1e-5)
            doubled = [
                query.double(),
                kept.double(),
                kept.double(),
                given,
                0.3,
                (angles.cos(), angles.sin()),
                interleaved,
            ]
            either = attend_turned(*doubled, None if weight is None else weight.double())
            seen = expected.abs().sum(-1, keepdim=True) > 0  # PyTorch gives what sees nothing something else
            torch.testing.assert_close(either * seen, expected * seen, atol=1e-6, rtol=1e-5)
    torch.set_num_threads(1)
