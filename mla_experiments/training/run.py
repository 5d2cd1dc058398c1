"""A training run: one mechanism, one folder `weights/[RUN/]ATTENTION/`.

The folder holds `run.json` (what determines the run, and how far it is), `metrics.jsonl`, checkpoints while
training, and at the end the weights as safetensors with config and tokenizer, which `from_pretrained` loads.
"""

import atexit
import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PrinterCallback, ProgressCallback, set_seed
from transformers.trainer_utils import SchedulerType

from ..data import DocumentStream, load_tokenizer_of, load_tokens, open_stream
from ..data.synthetic import task_of
from ..data.synthetic.task import Task
from ..errors import InUse, Stopped, UserError, unknown
from ..every_reader import tokenizer_for_every_reader
from ..manifest import file_hash, flush, library_versions, locked, write_record
from ..modeling import DecoderForCausalLM, device_name
from ..modeling.attention import find
from ..run_files import METRICS_FILE, RUN_FILE, check_files, read_run
from . import checkpoints
from .arguments import trainer_arguments
from .callbacks import Clock, Metrics, Progress, RestoreLoss, StopAskedFor, StopInGoodOrder
from .flags import WITHOUT_WARMUP
from .identity import VERSION, Comparison, differences, identity_of
from .rows import DrawnRows, PackedRows, TrainingStream
from .settings import RunArguments
from .streamed import StreamedSequences, check_streaming
from .trainer import StreamTrainer, lacks_validation
from .tried import refused

LOSSES = ("all", "answers")
COMPILED = "_orig_mod."  # stands in the names of what torch.compile holds


def train(arguments: RunArguments, trainer_flags: dict, draw: Callable[[Path], object]) -> list[Path]:
    """Train every mechanism asked for, one after another, and return their folders.

    A streamed corpus is read anew, from its start, for each.

    Args:
        arguments: complete, the preset's values filled in.
        trainer_flags: keyword arguments of TrainingArguments.
        draw: called with the folder of runs whenever there is a new validation loss.

    Raises:
        UserError: input that cannot work, a run that would overwrite another, or a finished one that is damaged;
            nothing has been changed then.
        Stopped: the user asked to stop; a checkpoint is saved.
    """
    if arguments.overwrite and arguments.resume:
        raise UserError("overwrite begins anew where a run stands, and resume goes on with it; leave one of them out")
    arguments.attention = [find(name) for name in arguments.attention]
    data_dir, root = Path(arguments.data_dir), Path(arguments.weights_dir) / arguments.run
    tokens, manifest = load_tokens(data_dir / "tokens", data_dir / "tokenizer")
    tokenizer = load_tokenizer_of(manifest, data_dir / "tokenizer")  # later other data may stand there
    check_streaming(arguments.streaming, manifest, trainer_flags)
    runs = [Run(root / name, name, arguments, trainer_flags, manifest) for name in dict.fromkeys(arguments.attention)]
    if arguments.resume and not any(run.folder.exists() for run in runs):
        raise UserError(f"--resume finds nothing to resume under {root}; leave it out to train anew")
    with contextlib.ExitStack() as held:
        held.push(leave_others_in_order)
        for run in runs:
            held.enter_context(run.lock())
        todo = [run for run in runs if not run.is_finished]
        for run in runs:
            if run.is_main_process and run in todo:
                run.check_folder(arguments.overwrite, arguments.resume)
            elif run.is_main_process:
                check_files(run.folder, "*")
        if arguments.streaming and todo:
            stream = held.enter_context(contextlib.closing(open_stream(data_dir / "tokens", manifest["stream"])))
            tokens = {**tokens, "train": stream}
        for run in runs:
            if run in todo:
                run.train(tokens, tokenizer, draw)
            elif run.is_main_process:
                print(f"{run.folder} is already trained{run.as_recorded()}; nothing to do.")
    return [run.folder for run in runs]


def leave_others_in_order(kind: type[BaseException] | None, *_) -> None:
    """Have this process leave the group that trained together before Python ends, where all of them end alike.

    Threads of a group that is left as it is abort Python at its end, now and then. After a fault in one process alone
    none waits for the others, who may never come.
    """
    if kind in (None, Stopped):
        atexit.register(PartialState().destroy_process_group)


def check_loss(arguments: RunArguments, corpus: str, task: Task | None) -> None:
    """Refuse what cannot be trained on of a corpus.

    Raises:
        UserError: a loss that is unknown, or on the answers of text; or rows that are too short for a task.
    """
    if task:
        task.check_length(arguments.sequence_length)
    if arguments.loss_on not in LOSSES:
        raise unknown("loss_on", arguments.loss_on, LOSSES)
    if arguments.loss_on != "all" and not task:
        raise UserError(
            f"loss_on={arguments.loss_on} is for synthetic corpora, but {corpus} has no answers; leave it out"
        )


class Run:
    """One mechanism to train into one folder."""

    def __init__(self, folder: Path, attention: str, arguments: RunArguments, trainer_flags: dict, manifest: dict):
        self.folder, self.attention, self.arguments, self.flags = folder, attention, arguments, trainer_flags
        self.tokens_per_step = arguments.batch_size * arguments.sequence_length
        self.trainer_arguments = trainer_arguments(arguments, trainer_flags, folder)
        self.config = arguments.model_config(attention, manifest["vocab_size"], manifest["end_of_document"])
        self.corpus = manifest["corpus"]
        self.task = task_of(self.corpus) if "task" in manifest else None
        check_loss(arguments, self.corpus, self.task)
        self.identity = identity_of(arguments, self.trainer_arguments, self.config, manifest, attention)
        self.before: list[dict] = []  # other code by which it was trained before this

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one of all that train the run together which writes and speaks for them."""
        return self.trainer_arguments.process_index == 0

    @property
    def recorded(self) -> dict:
        """What the folder says of itself; empty where there is no run."""
        return read_run(self.folder)

    @contextlib.contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Keep other processes from this run; the lock of a process that died holds nobody.

        Args:
            patience: seconds to wait for another process that trains it.

        Raises:
            InUse: another process trains it.
        """
        with contextlib.ExitStack() as held:
            if self.is_main_process:  # that one holds it for all
                try:
                    held.enter_context(locked(self.folder, patience))
                except InUse:
                    raise InUse(
                        f"{self.folder} is being trained by another process; wait until it ends, or choose --run NAME"
                    ) from None
            yield

    @property
    def comparison(self) -> Comparison:
        """How this run differs from the one that stands here."""
        return self.identity.compare(self.recorded)

    @property
    def is_finished(self) -> bool:
        """Whether this very run stands here, complete, and is not to be replaced."""
        if self.arguments.overwrite or self.recorded.get("status") != "finished":
            return False
        found = self.comparison
        is_same = not found.differs and (self.arguments.accept_changes or not found.changes)
        return is_same and (self.folder / "model.safetensors").is_file()

    def as_recorded(self) -> str:
        """Say of the finished run that stands here in what it is not known to be this one to the last digit."""
        found = self.comparison
        parts = [" with this configuration"]
        parts += [f"by other code: {', '.join(found.changes)}"] if found.changes else []
        parts += [f"with {', '.join(found.said)}"] if found.said else []
        parts += [f"by a version that did not record {', '.join(found.unknown)}"] if found.unknown else []
        return ", ".join(parts)

    def check_folder(self, overwrite: bool, resume: bool) -> None:
        """Refuse to train over what is there, unless told to.

        Raises:
            UserError: another run, or an unfinished one, stands in the folder.
        """
        # a process that was killed while it wrote its first record left that one aside
        if overwrite or not self.folder.exists() or all(path.suffix == ".partial" for path in self.folder.iterdir()):
            return
        ways = "choose --run NAME to keep both, or --overwrite to replace it"
        if not self.recorded:
            what = f"a damaged {RUN_FILE}" if (self.folder / RUN_FILE).exists() else "files that no run here made"
            raise UserError(f"{self.folder} holds {what}; {ways}")
        self.check_same(ways)
        if not resume:
            raise UserError(f"{self.folder} holds this run, unfinished; go on with --resume, or {ways}")

    def check_same(self, ways: str) -> None:
        """Refuse to take another run for this one, or this one by other code, unless that is accepted.

        Args:
            ways: what else can be done.

        Raises:
            UserError: it is another.
        """
        found = self.comparison
        if self.recorded and found.differs:
            raise UserError(f"{self.folder} holds a run that differs in {', '.join(found.differs)}; {ways}")
        if self.recorded and found.changes and not self.arguments.accept_changes:
            raise UserError(
                f"{self.folder} holds this run by other code: {', '.join(found.changes)}; --accept_changes takes it as "
                f"the same, or {ways}"
            )

    def train(self, tokens, tokenizer, draw: Callable[[Path], object]) -> None:
        """Train from the last whole checkpoint, or from the start, and save the weights.

        Args:
            tokens: packed, by split.
            tokenizer: that made them.
            draw: called with the folder of runs whenever there is a new validation loss.

        Raises:
            Stopped: the user asked to stop; a checkpoint is saved.
        """
        trainer, clock, stop, progress = self._trainer(tokens, tokenizer, draw)  # refuses before it writes
        checkpoint = None
        try:
            checkpoint = self._begin()
            if checkpoint:
                trainer.add_callback(RestoreLoss(trainer, checkpoint))
                if isinstance(trainer.train_dataset, StreamedSequences):
                    trainer.train_dataset.restore(checkpoint)
                trainer.args.eval_on_start = trainer.makes_up_for_validation = lacks_validation(checkpoint)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except UnpicklingError:  # torch opens nothing that could run code
            raise UserError(
                f"{checkpoint} holds a pickle that could run code, which is never opened; delete that checkpoint, "
                "unless you know where it came from, and go on with --resume from the one before"
            ) from None
        except StopAskedFor:
            pass
        finally:
            stop.restore()
            progress.close()
        step = trainer.state.global_step
        if step < self.trainer_arguments.max_steps or trainer.left_validation:
            raise Stopped(
                f"Stopped at step {step} of {self.trainer_arguments.max_steps}; {self.folder}/checkpoint-{step} is "
                f"saved. {self._how_to_go_on}"
            )
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all take part where weights are sharded
        if self.is_main_process:
            self._finish(trainer.accelerator.unwrap_model(trainer.model), weights, tokenizer, clock)
            draw(self.folder.parent)
        if any(gather_object([stop.asked])):  # in the last step, or while what belongs to it was saved
            raise Stopped(f"Stopped; {self.folder} is finished. {self._how_to_go_on}")

    @property
    def _how_to_go_on(self) -> str:
        without = ", without --overwrite" if self.arguments.overwrite else ""
        return f"Go on with the same command and --resume{without}."

    def _begin(self) -> Path | None:
        """Make the folder, replace what may be replaced, and record the run; return the checkpoint to go on from."""
        checkpoint = None
        if self.is_main_process:
            if self.arguments.overwrite:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint = self._checkpoint() if self.arguments.resume else None
            self.before = self._before() if checkpoint else []
            self.record(status="running")
            schedule = SchedulerType(self.trainer_arguments.lr_scheduler_type)
            if self.trainer_arguments.warmup_steps and schedule in WITHOUT_WARMUP:
                print(f"{schedule.value} has no warm-up; warmup_tokens is not used.")
        return broadcast_object_list([checkpoint])[0]

    def _finish(self, model: DecoderForCausalLM, weights: dict, tokenizer, clock: Clock) -> None:
        """Save what the run was for, and record that it stands here, whole."""
        model.config.use_cache = True  # which the Trainer turned off for itself
        weights = {name.replace(COMPILED, ""): weight for name, weight in weights.items()}
        with checkpoints.explained(self.folder):
            tokenizer.save_pretrained(self.folder)
            tokenizer_for_every_reader(self.folder)
            model.save_pretrained(self.folder, state_dict=weights)
        speed = clock.steps * self.tokens_per_step / clock.seconds if clock.steps else None
        self.record(status="finished", train_tokens_per_second=speed, files=self._own_files())

    def _checkpoint(self) -> Path | None:
        """Return the checkpoint to go on from, and say what is new since it was written."""
        found = self.comparison
        before = {name: number for name, number in self.recorded.get("versions", {}).items() if name != VERSION}
        now = library_versions()
        for what, parts in (
            ("was begun with other versions:", differences(before, {name: now.get(name) for name in before})),
            ("was begun by other code, as accepted:", found.changes),
            ("was begun with", found.said),
        ):
            if self.recorded and parts:
                print(f"{self.folder} {what} {', '.join(parts)}; its last digits may differ.")
        if self.recorded and found.unknown:
            print(
                f"{self.folder} was begun by a version that did not record {', '.join(found.unknown)}; where they are "
                "the defaults now they are taken to have been so."
            )
        return checkpoints.last_whole(self.folder)

    def _before(self) -> list[dict]:
        """Return by what code the run was trained before this, if by other: none or unknown sources among them."""
        recorded = self.recorded
        if not recorded or recorded.get("sources") == self.identity.sources:
            return recorded.get("before", [])
        earlier = {"versions": recorded.get("versions"), "sources": recorded.get("sources")}
        return [*recorded.get("before", []), earlier]

    def _own_files(self) -> dict[str, str]:
        """Return the checksums of what the finished run wrote: weights, config, tokenizer, metrics."""
        written = [path for path in sorted(self.folder.iterdir()) if path.is_file() and path.name != RUN_FILE]
        flush(*written, self.folder)
        return {path.name: file_hash(path) for path in written if path.suffix in (".json", ".safetensors", ".jsonl")}

    def _trainer(self, tokens, tokenizer, draw):
        arguments = trainer_arguments(self.arguments, self.flags, self.folder)  # the Trainer changes them
        set_seed(arguments.seed)
        model = DecoderForCausalLM(self.config)
        clock, progress, stop = Clock(), Progress(self.attention, self.tokens_per_step), StopInGoodOrder()
        with refused("what is given of transformers' TrainingArguments"):
            trainer = StreamTrainer(
                model=model,
                args=arguments,
                optimizer=self.arguments.optimizer,
                train_dataset=self._sequences(tokens.get("train"), tokenizer),
                eval_dataset=self._validation(tokens),
                processing_class=tokenizer,
                callbacks=[
                    Metrics(self.folder / METRICS_FILE, self.tokens_per_step, lambda: draw(self.folder.parent)),
                    progress,
                    clock,
                    stop,
                ],
            )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer, clock, stop, progress

    def _validation(self, tokens) -> torch.utils.data.Dataset:
        """Return the first sequences of the validation split."""
        length = self.arguments.sequence_length
        most = max(1, self.arguments.validation_tokens // length)
        if self.task:
            return DrawnRows(self.task, length, most, "validation")
        rows = PackedRows(tokens["validation"], length)
        return torch.utils.data.Subset(rows, range(min(most, len(rows))))

    def _sequences(self, documents, tokenizer) -> TrainingStream | StreamedSequences | DrawnRows:
        """Return the sequences to train on: of packed rows, of a stream of documents, or drawn."""
        length, batch_size = self.arguments.sequence_length, self.arguments.batch_size
        num_sequences = self.trainer_arguments.max_steps * batch_size
        if self.task:
            seed, answers_alone = self.trainer_arguments.seed, self.arguments.loss_on == "answers"
            return DrawnRows(self.task, length, num_sequences, "train", seed, answers_alone)
        if isinstance(documents, DocumentStream):
            return StreamedSequences(documents, tokenizer, length, num_sequences, batch_size)
        return TrainingStream(PackedRows(documents, length), num_sequences, self.trainer_arguments.seed)

    def record(self, **facts) -> None:
        """Write `run.json`."""
        write_record(
            self.folder / RUN_FILE,
            {
                "attention": self.attention,
                "corpus": self.corpus,
                "device": device_name(),
                "versions": library_versions(),
                **self.identity.record,
                "before": self.before,
                **facts,
            },
        )
