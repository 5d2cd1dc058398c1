"""What one process has to do of a study, and what it says of it."""

from .trials import Task, Trials
from .work import Ended, do


class Share:
    """The tasks of this process: which are ready, how they end, what the progress says, and what is left to others.

    Args:
        trials: of the study.
        shard: (i, n), every n-th task from the i-th.

    Attributes:
        failures: why runs failed, by folder; empty for those that this process has at hand or has done.
        sentences: one for each run that failed.
    """

    def __init__(self, trials: Trials, shard: tuple[int, int]):
        self.trials, self.shard = trials, shard
        self.failures: dict[str, str] = {}
        self.sentences: list[str] = []
        self.seconds, self.trained = 0.0, 0.0  # here, and how many whole runs that were
        self.ended = 0
        self.said: Task | None = None

    def begin(self, width: int) -> None:
        """Take up the tasks, now that the data are there; `width` of them run at a time."""
        number, of = self.shard
        self.width, self.all = width, self.trials.tasks()
        self.mine = self.all[number - 1 :: of]
        self.waiting = list(self.mine)
        self.untrained = sum(map(self.trials.part_of, self.mine))  # in whole runs
        tried = [self.trials.trial(task) for task in self.mine if task.number is not None]
        self.failures = {trial.run.folder.name: "" for trial in tried}

    def ready(self) -> list[Task]:
        """Return the tasks that are to be done and whose settings have become known."""
        decided = self.trials.decided(self.waiting)
        self.waiting = [task for task in self.waiting if task not in decided]
        todo = [task for task in decided.values() if not self.trials.trial(task).is_done]
        self.ended += len(decided) - len(todo)
        self.untrained -= sum(self.trials.part_of(task) for task in decided.values() if task not in todo)
        self.failures |= {self.trials.trial(task).run.folder.name: "" for task in todo}
        return todo

    def do(self, task: Task, attempt: int) -> Ended:
        """Do a task in this process, and say so before."""
        self.say(task, self.ended + 1)
        self.said = task
        return do(self.trials, task, attempt)

    def end(self, task: Task, ended: Ended) -> None:
        """Take down how a task ended."""
        self.ended += 1
        self.untrained -= self.trials.part_of(task)
        trial = self.trials.trial(task)
        self.failures[trial.run.folder.name] = ended.failure
        what = ": done"
        if ended.failure:
            self.sentences.append(f"{trial.name}: {ended.failure}")
            what = f": failed: {ended.failure}"
        elif ended.is_elsewhere:
            what = ": left to another process, which trains it"
        else:
            self.seconds += ended.seconds
            self.trained += self.trials.part_of(task)
        if what != ": done" or task != self.said:
            self.say(task, self.ended, what)

    def say(self, task: Task, number: int, what: str = "") -> None:
        """Print a line of progress, with the time left once it can be told from runs that ended here."""
        todo = len(self.mine) - self.ended
        if self.trained and todo:
            minutes = self.seconds / self.trained * self.untrained / min(todo, self.width) / 60
            what += f", about {minutes:.0f} min left"
        print(f"[{number}/{len(self.mine)}] {self.trials.trial(task).name}{what}", flush=True)

    def left(self) -> str:
        """Say which runs other processes are still to do."""
        still = self.trials.unfinished(self.all)
        mine = [task for task in still if task in self.mine]
        waiting = [task for task in mine if task in self.waiting]
        counts = {
            "that they train": len(mine) - len(waiting),
            "whose settings are still being tried": len(waiting),
            "of other shards": len(still) - len(mine),
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        return f"Runs left to other processes: {', '.join(parts)}. Then the same command goes on." if parts else ""
