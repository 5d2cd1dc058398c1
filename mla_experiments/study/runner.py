"""Run what a study still lacks.

    ROOT/data/NAME/        corpus, tokenizer and tokens of a study's data settings
    ROOT/runs/NAME-HASH/   one training run each, with its scores document by document
    ROOT/STUDY/study.json  which runs belong to the study, and what was measured beside them
    ROOT/STUDY/logs/       what runs say that are trained in processes of their own

Any number of processes may work on a study at once, on any machines that see ROOT: locks keep them apart.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data import prepare_corpus, prepare_tokenizer, prepare_tokens
from ..data.synthetic import is_synthetic
from ..errors import Stopped, UserError
from ..manifest import locked
from .description import Study
from .executors import ATTEMPTS, executor_of
from .matching import NEAR, check_trials
from .record import record
from .share import Share
from .trials import Trials
from .tuned import too_few
from .work import Ended, do_apart, log_of


@dataclass(frozen=True)
class Outcome:
    """What running a study came to.

    Attributes:
        folder: of the study.
        failures: a sentence for each run that failed.
        left: a sentence on what is left to other processes; empty where nothing is.
    """

    folder: Path
    failures: list[str]
    left: str


def run_study(
    study: Study,
    root: Path,
    executor: str = "serial",
    address: str | None = None,
    shard: tuple[int, int] = (1, 1),
    accept_changes: bool = False,
) -> Outcome:
    """Run what is missing and write `study.json`.

    Args:
        study: what to compare.
        root: folder of all studies.
        executor: where runs take place: serial, local:N or ray.
        address: of a Ray cluster.
        shard: (i, n): only every n-th run, from the i-th, from 1.
        accept_changes: take runs for the same though the code has changed since.

    Raises:
        UserError: a trial, data or a match that cannot be had, an executor that there is not, or runs by other code.
        Stopped: the user asked to stop; the same command goes on.
    """
    check_trials(study)
    trials = Trials(study, root, accept_changes)
    share = Share(trials, shard)
    try:
        with executor_of(executor, address, share.do, partial(do_apart, trials)) as pool:
            for corpus in study.corpora:
                prepare_data(study, corpus, trials.data_of(corpus))
            for name, earlier in trials.same.items():
                print(f"{name} is the same model as {earlier}, and trained once.")
            for sentence in said_beforehand(trials):
                print(sentence)
            share.begin(pool.width)
            trials.check_recorded()
            record(trials, share.failures)
            pool.submit(share.ready())
            for task, ended in pool:
                lost = Ended(failure=f"its process was lost {ATTEMPTS} times; see {log_of(trials, task)}")
                share.end(task, ended or lost)
                record(trials, share.failures)
                pool.submit(share.ready())
            left = share.left()
            record(trials, share.failures, beside=not left)
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).split(';')[0]}. The same command goes on.") from None
    return Outcome(root / study.name, share.sentences, left)


def said_beforehand(trials: Trials) -> list[str]:
    """Say which variants are not at the budget of the cache, and where validation is too small to choose by."""
    said = [
        f"{one.variant.name} keeps {one.cache_bytes_per_token:,} bytes a token, "
        f"{'above' if one.cache_residual > 0 else 'below'} the budget of {trials.study.budget_of(one.variant):,}."
        for one in trials.variants
        if one.cache_residual is not None and abs(one.cache_residual) > NEAR
    ]
    chooses = any(len(tried) > 1 for tried in trials.study.designs.values())
    if chooses and not is_synthetic(trials.study.data["corpus"]):
        said.append(too_few(len(trials.texts["validation"])))
    return list(filter(None, said))


def prepare_data(study: Study, corpus: str, data: Path) -> None:
    """Prepare a corpus of a study where no study has done so, one process at a time."""
    given, length = study.data, study.row_length
    with locked(data):
        prepare_corpus(data / "corpus", corpus, given["text_column"])
        prepare_tokenizer(data / "tokenizer", data / "corpus", given["vocab_size"])
        prepare_tokens(data / "tokens", data / "corpus", data / "tokenizer", length, given["shuffle_seed"])


def shard_of(text: str) -> tuple[int, int]:
    """Return (i, n) for "i/n".

    Raises:
        UserError: it is not, or i is not from 1 to n.
    """
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UserError(f"shard={text} is none; give i/n with i from 1 to n, such as 1/8")
    return int(number), int(of)
