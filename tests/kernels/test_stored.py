"""Rows of a cache in fewer bits: as exact as their form, and read in C as they are read in PyTorch."""

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.benchmark.measure import flops_of
from mla_experiments.errors import UserError
from mla_experiments.kernels import attend, attend_latents, attend_parts, latent, sdpa, shared_keys, stored_c
from mla_experiments.kernels.compiling import compiled
from mla_experiments.kernels.stored import STORED, Stored, packed, packed_width, unpacked

IN_PAIRS = 2e-3  # queries and weights of 16 bits, for scores of up to some tens
in_c = pytest.mark.skipif(stored_c.why_not_here() is not None, reason=f"in C: {stored_c.why_not_here()}")


def stored(x, kind, parts=None):
    """Numbers as a cache keeps them: a part of a longer buffer."""
    parts = (parts or (x.shape[-1],)) if kind == "int8" else ()
    rows = packed(x, parts) if parts else x.to(STORED[kind])
    buffer = rows.new_zeros((*rows.shape[:-2], rows.shape[-2] + 7, rows.shape[-1]))
    buffer[..., : rows.shape[-2], :] = rows
    return Stored(buffer[..., : rows.shape[-2], :], parts, torch.float32)


def formula(query, key, value, mask, scale):
    """Everything at once in float64; keys are shared by neighbouring heads."""
    shared = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(shared, 1) for x in (key, value))
    scores = query.double() @ key.mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ value


@given(
    width=st.integers(1, 40), parts=st.integers(1, 4), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    tokens=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=60)
def test_octets_are_within_half_a_step_of_their_part_s_largest(width, parts, size, tokens):
    widths = tuple(width + number for number in range(parts))
    x = torch.randn(2, tokens, sum(widths)) * size
    x = torch.cat([piece * 10.0**number for number, piece in enumerate(x.split(widths, -1))], -1)
    rows = packed(x, widths)
    assert rows.dtype is torch.int8 and rows.shape == (2, tokens, packed_width(widths))
    for piece, found in zip(x.split(widths, -1), unpacked(rows, widths).split(widths, -1), strict=True):
        half = piece.abs().amax(-1, keepdim=True) / 127 / 2
        assert ((piece - found).abs() <= half * (1 + 1e-5)).all()


def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden():
    x = torch.zeros(4, 6)
    x[1, 2], x[2, 5], x[3, :] = torch.nan, torch.inf, 1.0
    found = unpacked(packed(x, (4, 2)), (4, 2))
    assert (found[0] == 0).all() and (found[3] == 1).all()
    assert found[1, :4].isnan().all() and (found[1, 4:] == 0).all()
    assert found[2, 4:].isnan().all() and (found[2, :4] == 0).all()


@in_c
@pytest.mark.parametrize("parts", [(5,), (16, 8), (3, 4, 9)])
def test_c_packs_as_pytorch_does(parts):
    x = torch.randn(2, 3, 11, sum(parts))
    x[0, 0, 0], x[1, 2, 3, 0], x[0, 1, 2, 1] = 0.0, torch.nan, torch.inf
    into = torch.zeros(2, 3, 20, packed_width(parts), dtype=torch.int8)
    stored_c.pack(x, parts, into[:, :, 4:15])
    torch.testing.assert_close(unpacked(into[:, :, 4:15], parts), unpacked(packed(x, parts), parts), equal_nan=True)
    assert not into[:, :, :4].any() and not into[:, :, 15:].any()


def check(kind, batch, groups, shared, new, context, width, value_width, parts=None, same=False, bound=1e-5):
    """Hold attention in C to the formula over what PyTorch unpacks; queries of 16 bits are within `IN_PAIRS`."""
    if kind == "int8" and stored_c.pairs_pay():
        bound = IN_PAIRS
    query, x = torch.randn(batch, groups * shared, new, width), torch.randn(batch, groups, context, width)
    key = stored(x, kind, parts)
    value = None if same else stored(torch.randn(batch, groups, context, value_width), kind)
    plain = key.plain()[..., :value_width] if same else value.plain()
    mask = torch.rand(batch, 1, new, context) < 0.5
    mask[0, 0, 0] = False  # sees nothing
    for seen in (None, mask, mask[:1]):
        output = stored_c.attend(query, key, value, value_width, seen, 0.3)
        expected = formula(query, key.plain(), plain, seen, 0.3)
        torch.testing.assert_close(output.double(), expected, atol=bound, rtol=bound)


@pytest.fixture(params=[False, True], ids=["single", "pairs"])
def pairs(request, monkeypatch):
    """Rows of 8 bits read in single precision, and in pairs of 16 bits, whatever this processor has."""
    monkeypatch.setattr(stored_c, "pairs_pay", lambda: request.param)


@in_c
@pytest.mark.parametrize("parts", [(32, 8), (2, 6), (64,), (512, 64)])
@pytest.mark.parametrize("threads", [1, 3])
def test_many_rows_read_octets_in_single_precision_and_in_pairs_of_16_bits(pairs, parts, threads):
    torch.set_num_threads(threads)
    for groups, shared, new, context in ((1, 16, 1, 301), (2, 33, 2, 64), (1, 128, 1, 1)):
        for same, value_width in ((True, parts[0]), (True, 1), (False, 24), (False, 13)):
            check("int8", 2, groups, shared, new, context, sum(parts), value_width, parts, same, bound=1e-4)
    torch.set_num_threads(1)


@in_c
def test_nan_in_a_scale_is_not_hidden(pairs):
    query, x = torch.randn(1, 16, 1, 8), torch.randn(1, 1, 100, 8)
    broken = x.clone()
    broken[0, 0, 77, 3] = torch.nan
    for key, value in ((x, broken), (broken, x), (broken, None)):
        kept = [None if one is None else stored(one, "int8") for one in (key, value)]
        assert stored_c.attend(query, *kept, 8, None, 1.0).isnan().all()


@in_c
@pytest.mark.parametrize("kind", STORED)
@given(
    batch=st.integers(1, 3), groups=st.integers(1, 3), shared=st.sampled_from([1, 3, 16, 33]), new=st.integers(1, 3),
    context=st.integers(1, 300), width=st.sampled_from([2, 7, 32, 72]), value_width=st.sampled_from([1, 5, 32, 64]),
    threads=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=25)
def test_c_reads_keys_and_values_as_they_lie(kind, batch, groups, shared, new, context, width, value_width, threads):
    torch.set_num_threads(threads)
    check(kind, batch, groups, shared, new, context, width, value_width)
    check(kind, batch, groups, shared, new, context, width, min(width, value_width), (1, width - 1), True)
    torch.set_num_threads(1)


@in_c
@pytest.mark.parametrize(("shared", "new"), [(1, 1), (4, 1), (2, 3)])
def test_plain_keys_and_values_are_read_where_they_lie_and_nothing_behind_them(monkeypatch, shared, new):
    monkeypatch.setattr(sdpa, "attend", None)  # is not asked
    query, mask = torch.randn(2, 3 * shared, new, 32), None if new == 1 else torch.rand(2, 1, new, 301) < 0.5
    key, value = torch.full((2, 2, 3, 400, 32), torch.nan)
    key[:, :, :301], value[:, :, :301] = torch.randn(2, 2, 3, 301, 32)
    key, value = key[:, :, :301], value[:, :, :301]
    output = attend(query, key, value, mask, 0.3)
    torch.testing.assert_close(output.double(), formula(query, key, value, mask, 0.3), atol=1e-5, rtol=1e-5)


@in_c
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of another kind")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_processors_with_less_get_the_same_answer(monkeypatch, tmp_path, march):
    libraries = {name: compiled(name, march, tmp_path) for name in ("stored", "octets", "shared_keys")}
    for module in (stored_c, shared_keys):
        monkeypatch.setattr(module, "library", libraries.get)
    assert libraries["stored"].stored_lanes() == libraries["shared_keys"].lanes() == 8
    assert not stored_c.pairs_pay()
    for kind in STORED:
        check(kind, 2, 3, 1, 2, 133, 40, 24)
        check(kind, 2, 1, 16, 1, 133, 40, 24, (24, 16), True)
    monkeypatch.setattr(stored_c, "pairs_pay", lambda: True)
    check("int8", 2, 1, 16, 1, 133, 40, 24, (24, 16), True)


@in_c
@pytest.mark.parametrize("kind", STORED)
def test_latents_and_parts_are_read_as_they_lie(kind):
    rows, queries = torch.randn(2, 301, 2 * 24 + 8), (torch.randn(2, 16, 1, 56), torch.randn(2, 2, 5, 1, 24 + 8))
    kept = stored(rows, kind, (24, 24, 8))
    plain = kept.plain()
    with torch.profiler.profile() as profile:
        whole = attend_latents(queries[0], kept, 48, None, 0.2)
    assert any(event.name == "mla_experiments::attend_stored" for event in profile.events())
    expected = formula(queries[0], plain.unsqueeze(1), plain.unsqueeze(1)[..., :48], None, 0.2)
    bound = IN_PAIRS if kind == "int8" else 1e-5
    torch.testing.assert_close(whole.double(), expected, atol=bound, rtol=bound)
    found = attend_parts(queries[1], kept, 24, None, 0.2)
    torch.testing.assert_close(found, attend_parts(queries[1], plain, 24, None, 0.2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", STORED)
def test_prompts_probabilities_and_other_dtypes_read_plain_numbers(kind):
    key, value = (stored(torch.randn(2, 2, 20, 8), kind) for _ in range(2))
    query, attentions = torch.randn(2, 4, 20, 8), []
    expected = attend(query, key.plain(), value.plain(), None, 0.3)
    torch.testing.assert_close(attend(query, key, value, None, 0.3), expected)
    attend(query[:, :, :1], key, value, None, 0.3, attentions)
    assert attentions[0].shape == (2, 4, 1, 20)
    doubles = [Stored(one.rows, one.parts, torch.float64) for one in (key, value)]
    output = attend(query[:, :, :1].double(), *doubles, None, 0.3)
    torch.testing.assert_close(output, formula(query[:, :, :1], key.plain(), value.plain(), None, 0.3))


def test_a_backend_that_cannot_read_it_is_refused_if_forced(monkeypatch):
    kept, query = stored(torch.randn(1, 20, 24), "int8"), torch.randn(1, 2, 1, 24)
    monkeypatch.setattr(latent, "_forced", "triton")
    with pytest.raises(UserError, match="backend=triton cannot read a cache that is kept in int8; choose c, torch"):
        attend_latents(query, kept, 16, None, 1.0)
    monkeypatch.setattr(latent, "_forced", "torch")
    expected = attend_latents(query, kept.plain(), 16, None, 1.0)
    torch.testing.assert_close(attend_latents(query, kept, 16, None, 1.0), expected)


@in_c
def test_its_operations_are_counted():
    kept, query = stored(torch.randn(2, 1, 50, 6), "int8"), torch.randn(2, 3, 2, 6)
    mask = torch.ones(1, 1, 2, 50, dtype=torch.bool)
    assert flops_of(lambda: stored_c.attend(query, kept, None, 4, mask, 1.0)) == 2 * 2 * 3 * 2 * 50 * (6 + 4)
