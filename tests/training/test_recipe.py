"""The recipe that a run states beside its mechanism: how residual outputs start, the optimizer, the schedule."""

import shutil

import pytest
import torch
from conftest import TINY, command
from safetensors.torch import load_file

from mla_experiments.cli import main
from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.modeling.attention.compress import latent_rows, queries
from mla_experiments.training import RunArguments
from mla_experiments.training.arguments import steps_of
from mla_experiments.training.muon import Muon, muon
from mla_experiments.training.tried import StreamTrainingArguments

SIZE = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def made(**more):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**SIZE, **more))


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_what_adds_to_the_residual_stream_starts_as_stated_and_all_else_as_ever(attention):
    normal, scaled, zero = (
        made(attention=attention, initialization=how).state_dict() for how in ("normal", "scaled", "zero")
    )
    outputs = {name for name in normal if name.endswith(("o_proj.weight", "down_proj.weight"))}
    assert len(outputs) == 2 * SIZE["num_hidden_layers"]
    for name, weight in normal.items():
        if name in outputs:
            torch.testing.assert_close(scaled[name], weight / 6**0.5)
            assert not zero[name].any() and weight.any()
        else:
            assert torch.equal(scaled[name], weight) and torch.equal(zero[name], weight)


def test_a_block_that_starts_at_zero_is_the_identity():
    model = made(attention="mla", initialization="zero").eval()
    x = torch.randn(1, 5, 64)
    embedded = model.model(inputs_embeds=x, output_hidden_states=True).hidden_states
    assert torch.equal(embedded[-2], x)


def test_a_start_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="initialization='orthogonal' is unknown; choose normal or scaled or zero"):
        made(initialization="orthogonal")


@pytest.mark.parametrize("options", [{}, {"latent_norm": False}, {"latent_scale": True}, {"q_lora_rank": 24}])
def test_up_projections_of_full_variance_make_what_a_full_matrix_would(options):
    torch.manual_seed(0)
    layer = ATTENTION["mla"](512, 8, rotary=False, full_variance=True, **options)
    for module in layer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.05)
    with torch.no_grad():
        layer.init_weights(0.05)
        hidden = torch.nn.functional.rms_norm(torch.randn(1, 300, 512), (512,))
        made_of_it = [*layer.expand(latent_rows(layer, hidden, None, [layer.kv_a_layernorm]))]
        if "q_lora_rank" in options:
            made_of_it.append(queries(layer, hidden, None))
    for x in made_of_it:
        assert x.var() == pytest.approx(512 * 0.05**2, rel=0.1)


def test_muon_steps_the_matrices_of_the_blocks_and_adamw_the_rest(tmp_path):
    arguments = StreamTrainingArguments(output_dir=tmp_path, learning_rate=0.01, weight_decay=0.1, use_cpu=True)
    models, saved = [made(attention="mla"), made(attention="mla")], None
    for model in models:
        optimizer = muon(model, arguments, {name for name, p in model.named_parameters() if p.dim() > 1})
        if saved:
            optimizer.load_state_dict(saved)
        for _ in range(2 if saved else 1):
            tokens = torch.randint(0, 61, (4, 100), generator=torch.Generator().manual_seed(0))
            model(tokens, labels=tokens).loss.backward()
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step()
            optimizer.zero_grad()
        if not saved:
            saved = optimizer.state_dict()
            matrix, first = "model.layers.1.mlp.gate_proj.weight", dict(model.named_parameters())
            step = (first[matrix] - before[matrix] * (1 - 0.01 * 0.1)).detach()
            singular = torch.linalg.svdvals(step)
            assert singular[60] > 0.5 * singular[0], "orthogonalised"
            assert step.square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2), "of AdamW's size"
            table = "model.embed_tokens.weight"
            moved = (first[table] - before[table] * (1 - 0.01 * 0.1)).detach()
            assert moved.abs().median() == pytest.approx(0.01, rel=0.05), "AdamW's first step is its rate"
    kinds = [type(part).__name__ for part in optimizer.parts]
    assert kinds == ["Muon", "AdamW"]
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in model.parameters()), "each exactly once"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--optimizer", "lion"), "optimizer=lion is unknown; did you mean muon?"),
        (("--optimizer", "muon", "--optim", "sgd"), "optimizer=muon does not go with optim=sgd"),
    ],
)
def test_optimizers_that_cannot_be_are_refused(tmp_path, prepared, flags, said, capsys):
    assert main(["train", *command(data_dir=prepared, weights_dir=tmp_path, **TINY), *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_run_with_muon_resumes_to_the_same_weights(tmp_path, prepared):
    flags = command(data_dir=prepared, weights_dir=tmp_path, figures_dir=tmp_path, **TINY)
    recipe = ("--optimizer", "muon", "--initialization", "zero", "--lr_scheduler_type", "warmup_stable_decay")
    for run in ("whole", "parts"):
        assert main(["train", *flags, *recipe, "--run", run]) == 0
    folder = tmp_path / "parts" / "mla"
    shutil.rmtree(sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-1])
    (folder / "model.safetensors").unlink()
    assert main(["train", *flags, *recipe, "--run", "parts", "--resume"]) == 0
    whole, parts = (load_file(tmp_path / run / "mla" / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_schedule_that_stays_level_falls_in_the_last_fifth():
    run = RunArguments(train_tokens=6400, batch_size=4, sequence_length=16, warmup_tokens=640)
    found = steps_of(run, {"lr_scheduler_type": "warmup_stable_decay"})
    assert found == {
        "max_steps": 100, "warmup_steps": 10, "lr_scheduler_kwargs": {"num_decay_steps": 20, "decay_type": "linear"},
    }  # fmt: skip


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_muon_is_torch_s_own_but_for_rounding(shape):
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    both = (
        Muon([ours], 0.01, 0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), both, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    step = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * step, "torch orthogonalises in bfloat16, of 8 bits"
