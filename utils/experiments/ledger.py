"""Which commands of an experiment are done: each with what it wrote and what it read, so that no other run is taken."""

import json
from pathlib import Path

from utils.checksums import sha256_of_file
from utils.experiments.plan import Command
from utils.experiments.presets import is_finished
from utils.runs import CONFIG, METRICS, write_json

LEDGER = "commands.json"


class Ledger:
    """commands.json of an experiment's folder: folder of a command -> the command and the checksums of its run.

    A folder that is not in it may be anybody's: the command itself says, when it is run, whether it is its own.
    Paths are kept relative to the experiment, which may be moved.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / LEDGER
        self.entries: dict = {}
        if self.path.is_file():
            try:
                self.entries = dict(json.loads(self.path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise ValueError(f"{self.path}: not JSON; remove it, and each command looks at its own run") from None

    def is_done(self, command: Command) -> bool:
        """Was this very command finished here, are its files as it left them, and have those that it read not been
        made anew since?"""
        if not is_finished(command.folder) or not self.is_own(command) or self.is_stale(command):
            return False
        return self.entries[self._name(command)].get(METRICS) == sha256_of_file(command.folder / METRICS)

    def is_own(self, command: Command) -> bool:
        """Is what the folder holds, finished or not, this very command's?"""
        kept = self.entries.get(self._name(command))
        if not isinstance(kept, dict) or not (command.folder / CONFIG).is_file():
            return False
        return all(kept.get(key) == value for key, value in self._own(command).items())

    def is_stale(self, command: Command) -> bool:
        """Is it this very command's, but has what it read been made anew since? What is gone has not been."""
        if not self.is_own(command):
            return False
        kept = self.entries[self._name(command)].get("needs", {})
        return any(kept.get(name) != digest for name, digest in self._needs(command).items())

    def record(self, command: Command) -> None:
        self.entries[self._name(command)] = self._entry(command)
        write_json(self.path, self.entries)

    def _name(self, command: Command) -> str:
        return command.folder.relative_to(self.folder).as_posix()

    def _own(self, command: Command) -> dict:
        argv = [argument.replace(str(self.folder), ".") for argument in command.argv]
        return {"argv": argv, CONFIG: sha256_of_file(command.folder / CONFIG)}

    def _needs(self, command: Command) -> dict:
        there = [path for path in command.needs if (path / METRICS).is_file()]
        return {path.relative_to(self.folder).as_posix(): sha256_of_file(path / METRICS) for path in there}

    def _entry(self, command: Command) -> dict:
        metrics = {METRICS: sha256_of_file(command.folder / METRICS)}  # with the checksums of all that was written
        return {**self._own(command), **metrics, "needs": self._needs(command)}
