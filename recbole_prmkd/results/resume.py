"""A killed training goes on: its state after each epoch, kept in `unfinished/` until the run has its result.

    progress.json          what the state belongs to (settings, data, teachers); checksums of itself and of the files
    progress-<epoch>.pt    the state (`recbole_host.progress`)
    progress-<epoch>.pth   RecBole's checkpoint of the best epoch so far

The JSON file is replaced last, so a kill at any moment leaves a state that is whole: this epoch's or the one before.
"""

import json
import shutil
import time
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from recbole.config import Config

from recbole_prmkd.preparation import Prepared
from recbole_prmkd.recbole_host import progress
from recbole_prmkd.results.provenance import package_versions
from recbole_prmkd.results.run_folder import PROGRESS
from recbole_prmkd.storage import store
from recbole_prmkd.storage.json_files import read_sealed, write_sealed

_INDEX = f"{PROGRESS}.json"
# Settings that change nothing of the student.
_FREE = {"kd_output_dir", "kd_rebuild", "kd_cache_dir", "kd_teacher_dir", "show_progress", "state", "kd_save_ranks"}
_FREE |= {"kd_guard"}


class Progress:
    """The state of one training in its folder.

    Args:
        folder: `unfinished/` of the run's output.
    """

    def __init__(self, config: Config, prepared: Prepared, folder: Path) -> None:
        self.folder, self.config, self.started = folder, config, time.time()
        self.valid_scores: list[float] = []
        self.seconds = 0.0  # that earlier processes have trained
        self._epoch = -1  # the last one that is kept
        self._best = ""
        self.belongs_to = _identity(config, prepared)

    def load(self, saved: bool) -> dict[str, Any] | None:
        """The state to go on from, or None, with a message where one is there that cannot be used."""
        found = _read(self.folder)
        reason = self._why_not(found) if found else None
        if found is None or reason:
            if reason:
                getLogger().warning(f"The training in {self.folder} is not continued: {reason}. It starts anew.")
            clear(self.folder)
            return None
        state = torch.load(self.folder / found["state"], map_location="cpu", weights_only=True)
        self._epoch, self._best = found["epoch"], found["best"]
        self.valid_scores, self.seconds = list(found["valid_scores"]), found["seconds"]
        if saved and self._best:
            shutil.copyfile(self.folder / self._best, self.folder / f"{self.config['model']}.pth")
        getLogger().info(f"Training goes on after epoch {self._epoch}, where an earlier run of this command stopped.")
        return state

    def watch(self, trainer: Any, train_data: Any) -> None:
        """Keep the state of epochs that have no validation too: when the next one starts."""
        train_epoch = trainer._train_epoch

        def kept(trainer: Any, data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
            if epoch_idx - 1 > self._epoch:
                self.keep(trainer, train_data, epoch_idx - 1)
            return train_epoch(data, epoch_idx, *args, **kwargs)

        trainer._train_epoch = MethodType(kept, trainer)

    def keep(self, trainer: Any, train_data: Any, epoch: int) -> None:
        """Write the state after this epoch, then remove the one before."""
        file = self.folder / f"{PROGRESS}-{epoch}.pt"
        progress.save(progress.captured(trainer, train_data, epoch), self.folder, file.name)
        checkpoint = Path(trainer.saved_model_file)
        if checkpoint.is_file() and (not self._best or trainer.cur_step == 0):
            self._best = f"{PROGRESS}-{epoch}.pth"
            shutil.copyfile(checkpoint, self.folder / self._best)
        content = {
            "epoch": epoch,
            "state": file.name,
            "best": self._best,
            "files": {name: store.file_digest(self.folder / name) for name in (file.name, self._best) if name},
            "valid_scores": self.valid_scores,
            "seconds": self.seconds + time.time() - self.started,
            "belongs_to": self.belongs_to,
        }
        write_sealed(self.folder / _INDEX, content)
        self._epoch = epoch
        clear(self.folder, keep=(_INDEX, file.name, self._best))

    def _why_not(self, found: Mapping[str, Any]) -> str | None:
        if self.config["kd_rebuild"]:
            return "kd_rebuild is True"
        kept, now = found["belongs_to"], self.belongs_to
        other = [key for key in sorted({*kept, *now}) if kept.get(key) != now.get(key)]
        if other:
            return f"it had another value of {', '.join(other[:5])}"
        for name, checksum in found["files"].items():
            file = self.folder / Path(name).name
            if not file.is_file() or store.file_digest(file) != checksum:
                return f"{name} is missing or damaged"
        return None


def clear(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """Remove the state's files but these."""
    for file in folder.glob(f"{PROGRESS}*"):
        if file.name not in keep:
            file.unlink()


def _read(folder: Path) -> dict[str, Any] | None:
    """What the folder's index holds; None where there is none, or it is damaged."""
    try:
        return read_sealed(folder / _INDEX)
    except (OSError, ValueError):
        return None


def _identity(config: Config, prepared: Prepared) -> dict[str, Any]:
    """Everything that the student depends on, as JSON has it."""
    split = prepared.split
    columns = [
        column
        for loader in (split.train_data, split.valid_data)
        for _, column in sorted(loader._dataset.inter_feat.interaction.items())
    ]
    settings = {key: str(value) for key, value in config.final_config_dict.items() if key not in _FREE}
    return {
        **settings,
        "the data": store.digest([*columns, *split.item_tokens, *split.user_tokens]),
        "the teachers": [teacher.digest for teacher in prepared.teachers],
        "the item vectors": store.digest([prepared.start_vectors]) if prepared.start_vectors is not None else "",
        "the versions": store.digest([json.dumps(package_versions(), sort_keys=True)]),
        "the threads": torch.get_num_threads(),
    }
