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
        """Was this very command finished here, are its files as it left them, and those that it read as it found
        them?"""
        return is_finished(command.folder) and self.entries.get(self._name(command)) == self._entry(command)

    def is_stale(self, command: Command) -> bool:
        """Is the folder this very command's, but has what it read been made anew since?"""
        kept = self.entries.get(self._name(command))
        if not isinstance(kept, dict) or not (command.folder / CONFIG).is_file():
            return False
        same = all(kept.get(key) == value for key, value in self._own(command).items())
        return same and kept.get("needs") != self._needs(command)

    def record(self, command: Command) -> None:
        self.entries[self._name(command)] = self._entry(command)
        write_json(self.path, self.entries)

    def _name(self, command: Command) -> str:
        return command.folder.relative_to(self.folder).as_posix()

    def _own(self, command: Command) -> dict:
        argv = [argument.replace(str(self.folder), ".") for argument in command.argv]
        return {"argv": argv, CONFIG: sha256_of_file(command.folder / CONFIG)}

    def _needs(self, command: Command) -> dict:
        return {path.relative_to(self.folder).as_posix(): sha256_of_file(path / METRICS) for path in command.needs}

    def _entry(self, command: Command) -> dict:
        metrics = {METRICS: sha256_of_file(command.folder / METRICS)}  # with the checksums of all that was written
        return {**self._own(command), **metrics, "needs": self._needs(command)}
