"""Each step of a conversion against its own identity: exact at full size, and what it loses where it loses."""

import dataclasses
import itertools

import pytest
import torch

from mla_experiments.conversion import constant_channel
from mla_experiments.conversion.choosing import USUAL, kept_of, pairs_in_order, rotation_of
from mla_experiments.conversion.comparing import log_probabilities
from mla_experiments.conversion.converting import (
    Converted,
    Size,
    angles_of,
    cached_numbers,
    full_size,
    model_of,
    size_for,
    steps,
    studied,
)
from mla_experiments.conversion.grouped_maps import stacked
from mla_experiments.conversion.joint_rank import Part, balanced, low_rank, parts_of, with_ridge
from mla_experiments.conversion.latent_maps import in_unit_variance, output_of
from mla_experiments.conversion.layer_fit import mended
from mla_experiments.conversion.low_rank_queries import key_weights, with_query_rank
from mla_experiments.conversion.low_rank_queries import low_rank as low_rank_of_queries
from mla_experiments.conversion.moments import layer_inputs
from mla_experiments.conversion.ranks import shared_out, worth_of
from mla_experiments.conversion.rotary_part import without_rope
from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM

SIZE = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
KINDS = {
    "mha": {"attention": "mha"},
    "mqa": {"attention": "mqa"},
    "gqa of three groups": {"attention": "gqa", "attention_options": {"num_key_value_heads": 3}},
    "wide heads": {"attention": "gqa", "attention_options": {"num_key_value_heads": 2, "head_dim": 12}},
    "biases": {"attention": "gqa", "attention_options": {"num_key_value_heads": 3}, "attention_bias": True},
    "interleaved": {"attention": "gqa", "attention_options": {"num_key_value_heads": 2}, "rope_interleave": True},
    "llama3": {"attention": "gqa", "attention_options": {"num_key_value_heads": 2}, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "linear, with a factor of DeepSeek's": {"attention": "mqa", "rope_parameters": {
        "rope_type": "linear", "rope_theta": 1e4, "factor": 4.0, "mscale_all_dim": 1.0}},
    "yarn": {"attention": "gqa", "attention_options": {"num_key_value_heads": 2}, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}},
}  # fmt: skip
GQA = KINDS["gqa of three groups"]


def model_with(**kind) -> DecoderForCausalLM:
    """A random decoder, its biases random too."""
    torch.manual_seed(1)
    model = DecoderForCausalLM(DecoderConfig(**SIZE, **kind)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def text(windows=8, length=24, seed=2) -> torch.Tensor:
    return torch.randint(0, 64, (windows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, tokens):
    return model(tokens, use_cache=False).logits


@pytest.fixture
def study():
    """A random GQA model, calibration text, and what that says of its layers."""
    model = model_with(**GQA)
    return model, text(), studied(model, text(), of_queries=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("constant", [False, True])
def test_a_conversion_to_full_size_gives_the_logits_of_the_original(kind, constant):
    model, windows = model_with(**KINDS[kind]), text()
    layers = studied(model, windows)
    for made in steps(model, layers, full_size(model.config), windows, constant, fit=False):
        converted = model_of(model, made)
        torch.testing.assert_close(logits(converted, text(seed=3)), logits(model, text(seed=3)), rtol=0, atol=1e-3)
        options = converted.config.attention_options
        kept = options["kv_lora_rank"] + options["qk_rope_head_dim"]
        assert kept == cached_numbers(model.config) + (made.norms is not None)


def test_concentrating_changes_no_key(study):
    model, _, layers = study
    for layer, attention in zip(layers, (block.self_attn for block in model.model.layers), strict=True):
        torch.testing.assert_close(layer.maps.keys, stacked(attention).keys, rtol=0, atol=1e-10)


def test_components_come_in_the_order_of_what_queries_read_of_them(study):
    for layer in study[2]:
        assert (layer.energy[:, :-1] >= layer.energy[:, 1:]).all()
        read = layer.moments.read.to(torch.complex128)
        second = torch.einsum("fje,ed,fkd->fjk", layer.maps.components, read, layer.maps.components.conj())
        apart = second - torch.diag_embed(layer.energy).to(second.dtype)
        assert apart.abs().max() < 1e-8 * layer.energy.max()  # uncorrelated, of their energies


def test_stacking_and_concentrating_give_the_layer_s_own_outputs():
    model, windows = model_with(**GQA).double(), text()
    layers, whole = studied(model, windows), list(full_size(model.config).kept)
    with torch.no_grad():
        for layer, (attention, inputs, rotation, _) in zip(layers, layer_inputs(model, windows), strict=True):
            angles = angles_of(model)[0].repeat_interleave(3) * torch.arange(windows.shape[1]).view(1, -1, 1)
            for maps in (stacked(attention), layer.maps):
                latent = without_rope(maps, whole, torch.ones_like(layer.mean_rotation))
                made = output_of(latent, inputs, (angles.cos(), angles.sin()))
                torch.testing.assert_close(made, attention(inputs, rotation), rtol=0, atol=1e-5)


def test_what_is_left_without_rope_is_exact_where_nothing_turns_by_much():
    slow = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 1e7}}
    model = model_with(**GQA, **slow)
    layers, frequencies = studied(model, text()), angles_of(model)[0]
    kept = [1] + [0] * (len(frequencies) - 1)
    for layer in layers:
        maps = without_rope(layer.maps, kept, layer.mean_rotation)
        assert layer.lost(maps, rotation_of(kept, frequencies, text().shape[1])) < 1e-8


@pytest.mark.parametrize("rank", [1, 7, 20, 47])
def test_the_error_of_low_rank_queries_is_the_tail_of_the_singular_values(rank):
    made = torch.Generator().manual_seed(5)
    queries, root, inputs = (torch.randn(*shape, dtype=torch.float64, generator=made)
                             for shape in ((6, 10, 48), (6, 10, 20), (48, 90)))  # fmt: skip
    weights, covariance = root @ root.transpose(1, 2), inputs @ inputs.T / 90
    down, up = low_rank_of_queries(queries, weights, covariance, rank)
    missing = queries - up @ down
    error = ((weights @ missing @ covariance) * missing).sum()
    whole = torch.linalg.cholesky(torch.block_diag(*weights)).T @ queries.flatten(0, 1)
    tail = torch.linalg.svdvals(whole @ torch.linalg.cholesky(covariance))[rank:].square().sum()
    assert float(error) == pytest.approx(float(tail), rel=1e-4)
    torch.testing.assert_close(down @ covariance @ down.T, torch.eye(rank).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_full_rank_are_the_queries(kind):
    model, windows = model_with(**KINDS[kind]), text()
    frequencies = angles_of(model)[0]
    for layer in studied(model, windows, of_queries=True):
        kept = [1] * len(frequencies)
        maps, rotation = without_rope(layer.maps, kept, layer.mean_rotation), rotation_of(kept, frequencies, 24)
        low = with_query_rank(maps, SIZE["hidden_size"] + model.config.attention_bias, layer.moments)
        assert len(low.query_latent) <= SIZE["hidden_size"] + 1
        wanted = output_of(maps, layer.inputs.double(), rotation)
        made = output_of(low, layer.inputs.double(), rotation)
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_what_is_asked_is_summed_up_only_where_queries_need_it(study):
    model, windows, with_queries = study
    for layer, full in zip(studied(model, windows), with_queries, strict=True):
        assert layer.moments.asked is None and full.moments.asked.shape == (48, 48)
        assert torch.equal(layer.moments.read, full.moments.read)
        with pytest.raises(ValueError, match="without those of what is asked"):
            with_query_rank(without_rope(layer.maps, [1] * 4, layer.mean_rotation), 8, layer.moments)


def test_what_queries_meet_is_the_mean_over_all_angles_of_what_keys_are(study):
    for layer in study[2]:
        maps = without_rope(layer.maps, [2] * 4, layer.mean_rotation)
        values, vectors = torch.linalg.eigh(layer.moments.read)
        rows = (vectors * values.clamp(min=0).sqrt()).T  # [E, E], whose second moment is that of what is read
        content = rows @ maps.latent.T @ maps.key_up.transpose(1, 2)  # [H, E, d_n]
        total = 0
        for first, second in itertools.product(torch.arange(5) * 2 * torch.pi / 5, repeat=2):
            angles = (first + torch.arange(4).repeat_interleave(2) * second).double()  # one for both of a frequency
            real, imaginary = (rows @ maps.rotary_key.T).chunk(2, dim=1)
            turned = torch.cat((real * angles.cos() - imaginary * angles.sin(),
                                real * angles.sin() + imaginary * angles.cos()), dim=1)  # fmt: skip
            keys = torch.cat((content, turned.expand(6, -1, -1)), dim=2)
            total = total + keys.transpose(1, 2) @ keys / 25
        share = layer.moments.distances.sum(1) / layer.moments.distances.sum()
        found = key_weights(maps, layer.moments)
        torch.testing.assert_close(found, total * share.view(-1, 1, 1), rtol=1e-5, atol=1e-6 * float(found.max()))


@pytest.mark.parametrize("constant", [False, True])
def test_a_conversion_with_queries_of_full_rank_gives_the_logits_of_the_original(study, constant):
    model, windows, layers = study
    *_, made = steps(model, layers, full_size(model.config), windows, constant, fit=False, query_rank=48)
    converted = model_of(model, made)
    assert converted.config.attention_options["q_lora_rank"] == 48 + constant
    wanted = logits(model, text(seed=3))
    assert (logits(converted, text(seed=3)) - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_loss_falls_with_the_rank_of_queries_and_the_fit_mends_some_of_it(study):
    model, windows, layers = study
    size, truth, apart = size_for(model, layers, 24, constant=False), logits(model, text(seed=3)), {}
    windows = text(64)
    for rank in (2, 8, 24):
        for made in steps(model, layers, size, windows, constant=False, fit=True, query_rank=rank):
            apart[rank, made.step] = float((logits(model_of(model, made), text(seed=3)) - truth).square().mean())
        assert apart[rank, "fitted"] < apart[rank, "queries of low rank"]
        assert apart[rank, "low rank"] < apart[rank, "queries of low rank"]
    assert apart[24, "queries of low rank"] < apart[8, "queries of low rank"] < apart[2, "queries of low rank"]


def test_healing_leaves_the_constants_of_both_latents_unread(study):
    model, windows, layers = study
    *_, made = steps(model, layers, size_for(model, layers, 24, True), windows, True, False, query_rank=12)
    converted = model_of(model, made)
    constant_channel.hold(converted)
    converted(windows, labels=windows).loss.backward()
    for block in converted.model.layers:
        for down, up in (("kv_a_proj_with_mqa", "kv_b_proj"), ("q_a_proj", "q_b_proj")):
            down, up = getattr(block.self_attn, down), getattr(block.self_attn, up)
            channel = up.in_features - 1
            assert down.bias[channel].abs() > 1e3 and not down.weight[channel].any() and not up.weight[:, channel].any()
            assert not down.bias.grad[channel].any() and not down.weight.grad[channel].any()
            assert not up.weight.grad[:, channel].any() and up.weight.grad.any()


def test_numbers_go_where_they_are_worth_most():
    made = torch.Generator().manual_seed(8)
    worth = [torch.rand(6, dtype=torch.float64, generator=made).sort(descending=True).values * k for k in (1, 2, 9)]
    for total in range(3, 19):
        every = (ranks for ranks in itertools.product(range(1, 7), repeat=3) if sum(ranks) == total)
        best = min(
            every, key=lambda ranks: sum(float(own[rank:].sum()) for own, rank in zip(worth, ranks, strict=True))
        )
        assert tuple(shared_out(worth, total)) == best


def test_what_a_number_is_worth_is_what_the_error_falls_by(study):
    _, _, layers = study
    for layer in layers:
        same = dataclasses.replace(layer.moments, attended=layer.moments.read)  # where Eckart and Young's is the best
        layer = dataclasses.replace(layer, moments=same)
        stand_in, kept = layer.mean_rotation, [1] * 4
        parts = parts_of(without_rope(layer.maps, kept, stand_in), same, stand_in, USUAL.key_weight)
        errors = [error(*parts, *low_rank(*parts, rank)) for rank in (3, 4, 9, 10)]
        worth = worth_of(layer, USUAL, kept) * layer.stream
        assert errors[0] - errors[1] == pytest.approx(float(worth[3]), rel=1e-3)
        assert errors[2] - errors[3] == pytest.approx(float(worth[9]), rel=1e-3)


def test_a_layer_of_few_directions_is_given_few_numbers():
    model, windows = model_with(**GQA), text(16)
    with torch.no_grad():
        for name in ("k_proj", "v_proj"):  # of layer 0: keys and values of two directions each
            weight = getattr(model.model.layers[0].self_attn, name).weight
            weight.copy_(weight[:, :2] @ torch.randn(2, 48, generator=torch.Generator().manual_seed(9)))
    layers = studied(model, windows)
    size = dataclasses.replace(size_for(model, layers, 24, constant=True), by_layer=True)
    *_, made = steps(model, layers, size, windows, constant=True, fit=True)
    ranks = [maps.rank for maps in made.layers]
    assert ranks[0] <= 5 < ranks[1] and sum(ranks) + 2 * size.rotary == 2 * 24
    even = list(steps(model, layers, dataclasses.replace(size, by_layer=False), windows, constant=True, fit=True))[-1]
    wanted = logits(model, text(seed=3))
    apart = [(logits(model_of(model, one), text(seed=3)) - wanted).square().mean() for one in (made, even)]
    assert apart[0] < apart[1]


def test_unit_variance_changes_nothing_but_the_scale(study):
    model, windows, layers = study
    rotation = rotation_of([1] * 4, angles_of(model)[0], windows.shape[1])
    for layer in layers:
        maps = without_rope(layer.maps, [1] * 4, layer.mean_rotation)
        maps = dataclasses.replace(maps, latent=maps.latent[-24:], key_up=maps.key_up[..., -24:],
                                   value_up=maps.value_up[..., -24:])  # fmt: skip
        scaled = in_unit_variance(maps, layer.moments.attended)
        variance = scaled.latent @ layer.moments.attended @ scaled.latent.T
        torch.testing.assert_close(variance, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-6)
        wanted = output_of(maps, layer.inputs.double(), rotation)
        torch.testing.assert_close(output_of(scaled, layer.inputs.double(), rotation), wanted, rtol=0, atol=1e-8)


def parts(seed=0, same_covariance=False) -> tuple[Part, Part]:
    """Keys and values with random weights and covariances, in double precision."""
    made = torch.Generator().manual_seed(seed)

    def positive(size):
        root = torch.randn(size, 2 * size, dtype=torch.float64, generator=made)
        return root @ root.T / size

    covariances = [positive(20)] * 2 if same_covariance else [positive(20), positive(20)]
    rows = (torch.randn(12, 20, dtype=torch.float64, generator=made) for _ in range(2))
    return tuple(Part(w, positive(12), covariance) for w, covariance in zip(rows, covariances, strict=True))


def error(keys, values, down, ups):
    return sum(part.error(up @ down) for part, up in zip((keys, values), ups, strict=True))


@pytest.mark.parametrize("rank", [1, 5, 12, 19])
def test_the_error_of_a_low_rank_is_the_tail_of_the_singular_values(rank):
    keys, values = parts(same_covariance=True)

    def root(matrix):  # another one than the symmetric root: singular values are the same
        return torch.linalg.cholesky(matrix)

    weight = torch.block_diag(keys.weight, values.weight)
    rows = torch.cat((keys.rows, values.rows))
    tail = torch.linalg.svdvals(root(weight).T @ rows @ root(keys.covariance))[rank:].square().sum()
    assert error(keys, values, *low_rank(keys, values, rank)) == pytest.approx(float(tail), rel=1e-4)


@pytest.mark.parametrize("rank", [2, 8, 16])
def test_taking_turns_never_makes_the_error_larger_and_ends_where_no_change_of_a_map_helps(rank):
    keys, values = parts()
    start = low_rank(keys, values, rank)
    down, ups = balanced(keys, values, *start)
    least = error(keys, values, down, ups)
    assert least <= error(keys, values, *start)
    for part, up in zip((keys, values), ups, strict=True):
        gradient = part.weight @ (part.rows - up @ down) @ part.covariance @ down.T
        assert gradient.abs().max() < 1e-8 * (part.weight @ part.rows @ part.covariance @ down.T).abs().max()


def test_more_rank_never_loses_more():
    keys, values = parts()
    errors = [error(keys, values, *balanced(keys, values, *low_rank(keys, values, rank))) for rank in range(1, 20, 3)]
    assert errors == sorted(errors, reverse=True)


def test_a_ridge_makes_a_covariance_of_few_tokens_positive():
    rows = torch.randn(3, 10, dtype=torch.float64)
    assert torch.linalg.eigvalsh(with_ridge(rows.T @ rows)).min() > 0


def planted(rank=10, heads=6, width=8) -> DecoderForCausalLM:
    """An MLA whose heads read one rotary key and values of a latent, expanded to MHA by hand."""
    torch.manual_seed(4)
    model = model_with(attention="mha")
    with torch.no_grad():
        for block in model.model.layers:
            attention = block.self_attn
            one = attention.k_proj.weight.view(heads, width, -1)[:1]
            attention.k_proj.weight.copy_(one.expand(heads, -1, -1).flatten(0, 1))
            up, down = torch.randn(heads * width, rank) / rank**0.5, torch.randn(rank, SIZE["hidden_size"]) * 0.3
            attention.v_proj.weight.copy_(up @ down)
    return model


def test_a_planted_latent_is_found_again():
    model, windows = planted(), text(16)
    layers = studied(model, windows)
    size = Size(10, (1,) * 4)
    *_, made = steps(model, layers, size, windows, constant=False, fit=False)
    assert (made.layers[0].rank, made.layers[0].rotary) == (10, 8)
    torch.testing.assert_close(
        logits(model_of(model, made), text(seed=3)), logits(model, text(seed=3)), rtol=0, atol=1e-3
    )


def test_loss_falls_with_the_cache(study):
    model, windows, layers = study
    truth, apart = log_probabilities(logits(model, windows)), []
    for numbers in (6, 12, 24, 40, 48):
        size = size_for(model, layers, numbers, constant=False)
        assert size.rank + size.rotary == numbers
        *_, made = steps(model, layers, size, windows, constant=False, fit=False)
        given = log_probabilities(logits(model_of(model, made), windows))
        apart.append(float((truth.exp() * (truth - given)).sum(-1).mean()))
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-6 < apart[-2]


def test_the_same_conversion_twice_gives_the_same_bits():
    model, windows = model_with(**GQA), text()
    found = []
    for _ in range(2):
        layers = studied(model, windows)
        size = size_for(model, layers, 24, constant=True)
        *_, made = steps(model, layers, size, windows, constant=True, fit=True)
        found.append(model_of(model, made).state_dict())
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name


def test_the_fit_brings_the_model_nearer_to_the_original():
    model, windows = model_with(**GQA), text(64)
    layers = studied(model, windows)
    size = size_for(model, layers, 24, constant=False)
    made = {one.step: one for one in steps(model, layers, size, windows, constant=False, fit=True)}
    truth = logits(model, text(seed=3))
    lost = {step: (logits(model_of(model, one), text(seed=3)) - truth).square().mean() for step, one in made.items()}
    assert lost["fitted"] < lost["low rank"]


def test_least_squares_mends_what_is_linearly_wrong_and_learns_no_noise():
    made = torch.Generator().manual_seed(6)
    output, true, read = (torch.randn(*shape, generator=made) for shape in ((7, 20), (7, 20), (8, 30, 20)))
    targets = read @ true.T
    found = mended(output.double(), read, targets)
    assert (found - true).abs().max() < 0.05 * (output - true).abs().max()
    noise = torch.randn(8, 30, 7, generator=made)
    few = read[:3], (read @ output.T + noise)[:3]  # thirty tokens for twenty numbers
    assert torch.equal(mended(output.double(), *few), output.double())


def test_a_converted_model_decodes_as_it_computes(study):
    model, windows, layers = study
    *_, made = steps(model, layers, size_for(model, layers, 24, True), windows, constant=True, fit=False)
    converted, tokens = model_of(model, made), text(2, seed=3)
    whole = logits(converted, tokens)
    with torch.no_grad():
        cache, found = None, []
        for place in range(tokens.shape[1]):
            output = converted(tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache, _ = output.past_key_values, found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=1e-4)
    held = cache.layers[0].keys.shape[-1] + cache.layers[0].values.shape[-1]
    assert held == 24


def test_the_pairs_that_turn_are_those_whose_rotation_is_missed_most(study):
    order = pairs_in_order(study[2])
    assert sorted(order) == [(f, j) for f in range(4) for j in range(3)]
    for f in range(4):
        assert [j for frequency, j in order if frequency == f] == [0, 1, 2]
    assert sum(kept_of(order[:5], 4)) == 5


def test_inputs_that_are_nearly_all_the_same_are_converted():
    """As of most decoders, most of whose hidden states is the same for all tokens, or few tokens for the width."""
    model, windows = model_with(**GQA), text(4, 16)
    with torch.no_grad():
        model.model.embed_tokens.weight += 300 * torch.randn(48, generator=torch.Generator().manual_seed(4))
    layers = studied(model, windows, of_queries=True)
    for layer in layers:
        for moment in (layer.moments.read, layer.moments.attended, layer.moments.asked):
            values = torch.linalg.eigvalsh(moment)
            assert values[0] > -1e-13 * values[-1]
    size = size_for(model, layers, 24, constant=False)
    *_, made = steps(model, layers, size, windows, constant=False, fit=True)
    assert logits(model_of(model, made), windows).isfinite().all()


def test_activations_that_are_not_finite_are_refused_by_their_layer():
    model = model_with(**GQA)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="layer 1 is not finite"):
        studied(model, text())


@pytest.mark.parametrize("attention", ["mha", "gqa"])
def test_heads_that_were_pruned_by_zeros_are_converted_with_the_rest(attention):
    model, windows = model_with(attention=attention), text()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 8:24] = 0  # of two heads
    layers = studied(model, windows, of_queries=True)
    half, apart = size_for(model, layers, cached_numbers(model.config) // 2, constant=False), []
    for size in (half, full_size(model.config)):
        *_, made = steps(model, layers, size, windows, constant=True, fit=True, query_rank=48)
        apart.append(float((logits(model_of(model, made), text(seed=3)) - logits(model, text(seed=3))).abs().max()))
    assert apart[1] < 1e-3 < apart[0] < 10


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_attention_that_depends_on_nothing_is_refused_by_its_layer(name):
    model = model_with(**GQA)
    with torch.no_grad():
        getattr(model.model.layers[1].self_attn, name).weight.zero_()
    with pytest.raises(UserError, match="attention of layer 1 gives zeros, or reads all tokens alike"):
        studied(model, text())


def test_the_weights_outside_attention_are_shared_not_copied(study):
    model, windows, layers = study
    made = next(iter(steps(model, layers, full_size(model.config), windows, False, False)))
    converted = model_of(model, Converted("", made.layers, made.kept))
    assert converted.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
