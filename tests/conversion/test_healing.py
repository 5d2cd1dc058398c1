"""Healing: its loss against a recomputation, its resume to the bit, and that it brings a model back."""

import pytest
import torch
from safetensors.torch import load_file

from mla_experiments.conversion.healing import DistillingTrainer, Healing, Windows, train_on
from mla_experiments.data import load_tokenizer
from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model
from mla_experiments.run_files import read_run

SIZE = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip
HEALING = Healing(tokens=10 * 4 * 16, learning_rate=0.01, distillation=0.5, batch=4)


@pytest.fixture
def place(prepared, tmp_path):
    """A teacher, a folder of another model to start with, windows of text, and a tokenizer."""
    torch.manual_seed(0)
    teacher = DecoderForCausalLM(DecoderConfig(**SIZE, attention="mha")).eval()
    student = DecoderForCausalLM(DecoderConfig(**SIZE, attention="mla"))
    student.model.embed_tokens.load_state_dict(teacher.model.embed_tokens.state_dict())
    student.save_pretrained(tmp_path / "start")
    windows = torch.randint(0, 300, (12, 17), generator=torch.Generator().manual_seed(1))
    return tmp_path, teacher, windows, load_tokenizer(prepared / "tokenizer")


def heal(place, name, healing=HEALING, teacher=True, identity=None):
    folder, original, windows, tokenizer = place
    return train_on(folder / "start", folder / name, windows, healing, original if teacher else None, tokenizer,
                    identity or {})  # fmt: skip


def weights(folder):
    return load_file(folder / "model.safetensors")


class Killed(Exception):  # noqa: N818
    """In place of a power cut."""


def test_the_loss_is_the_stated_mixture(place):
    _, teacher, windows, _ = place
    student = load_model(place[0] / "start")
    batch = {name: torch.stack([Windows(windows)[i][name] for i in range(3)]) for name in Windows(windows)[0]}
    trainer = DistillingTrainer.__new__(DistillingTrainer)
    trainer.teacher, trainer.distillation = teacher, 0.25
    with torch.no_grad():
        found = trainer.compute_loss(student, batch)
        p, q = (model(batch["input_ids"]).logits.double().softmax(-1) for model in (teacher, student))
        told = q.gather(-1, batch["shift_labels"].unsqueeze(-1)).log()
        wanted = -0.75 * told.mean() + 0.25 * (p * (p / q).log()).sum(-1).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_healing_brings_the_model_nearer_to_the_original(place):
    folder, teacher, windows, _ = place
    healed = heal(place, "healed", Healing(tokens=60 * 64, learning_rate=0.02, distillation=1.0, batch=4))

    @torch.no_grad()
    def apart(model):
        said, truth = (one(windows[:, :-1]).logits.log_softmax(-1) for one in (model, teacher))
        return float((truth.exp() * (truth - said)).sum(-1).mean())

    assert apart(load_model(healed)) < 0.7 * apart(load_model(folder / "start"))


def test_a_run_that_was_cut_off_ends_in_the_same_bits(place, monkeypatch):
    whole = weights(heal(place, "whole"))
    step = DistillingTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(DistillingTrainer, "training_step", dying)
        heal(place, "cut")
    assert read_run(place[0] / "cut")["status"] == "running"
    with pytest.raises(UserError, match="not finished"):
        load_model(place[0] / "cut")
    resumed = weights(heal(place, "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_is_not_trained_again_and_another_is_not_overwritten(place, capsys):
    folder = heal(place, "healed")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    heal(place, "healed")
    assert "nothing to do" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds something else"):
        heal(place, "healed", identity={"original": "another"})


def test_the_control_learns_from_the_text_alone(place):
    control = heal(place, "control", teacher=False)
    assert read_run(control)["healing"]["distilled"] is False
    assert not all(torch.equal(a, b) for a, b in zip(weights(control).values(), weights(place[0] / "start").values(),
                                                     strict=True))  # fmt: skip
