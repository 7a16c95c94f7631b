"""Any model of RecBole as a teacher, by its name in `kd_teachers`: LightGCN, SASRec, EASE, DeepFM, ...

RecBole's own trainer fits it to the training examples but a holdout, which decides when to stop. With a checkpoint of
RecBole's it is taken as it is. Ids are canonical, so that nothing that is learnt depends on validation or test items.

How it scores decides what is stored of it (`teacher_cache`): the product of two vectors and a bias of items, where the
first batch shows that `full_sort_predict` is that; the largest scores of each example otherwise. A model that scores
pairs alone scores all users x all items once, which is slow for large catalogues.
"""

import tempfile
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.config import Config
from recbole.data.transform import construct_transform
from recbole.utils import ModelType, get_model
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.errors import NotFinite, UserError
from recbole_prmkd.recbole_host.finite import overflow_explained, watch_loss, weights_are_finite, weights_sentence
from recbole_prmkd.recbole_host.host_properties import host_properties
from recbole_prmkd.recbole_host.keys import teacher_settings
from recbole_prmkd.recbole_host.models import host_trainer
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.storage import store
from recbole_prmkd.students.adapter import clear_graph_cache
from recbole_prmkd.students.traits import to_logits, traits_of
from recbole_prmkd.teachers import recbole_data
from recbole_prmkd.teachers.calibration import temperature_of
from recbole_prmkd.teachers.clock import TimeIsUp, clock
from recbole_prmkd.teachers.recbole_checkpoint import own_settings, read
from recbole_prmkd.teachers.recbole_scores import SCORES, RecBoleScores
from recbole_prmkd.teachers.unseen import without_history

if TYPE_CHECKING:
    from recbole_prmkd.teachers.data import ExamplesDataset, TeacherData

_EXAMPLES = 2000  # that the temperature is chosen on, at most
KEPT = "kept_"  # prefix of what a model keeps beside its parameters


class RecBoleTeacher(RecBoleScores):
    """A model of RecBole that RecBole's own trainer fits, or that is taken from a checkpoint."""

    version = "1.0"
    learns = False  # by itself: RecBole trains the model inside

    def __init__(self, config: Config, dataset: "ExamplesDataset") -> None:
        super().__init__(config, dataset)
        assert dataset.source is not None, "a model of RecBole is fitted to the data of a run"
        self.config, self.data, self.kind = config, dataset.source, config["teacher_kind"]
        self.load_col = config["student_load_col"]
        self.register_buffer("tau", torch.ones((), dtype=torch.float64))
        self.holdout = 0.0
        self.keeps = False  # the weights of an earlier run, as they are
        self.own = {key: config[key] for key in teacher_settings(self.kind, {})}
        self._build(self.data.holdout, None)

    def _build(self, held: Examples, student_ids: Tensor | None) -> None:
        """The model, untrained, and RecBole's data set of all training interactions but those held.

        student_ids: [n_items] student's item id -> canonical id, where ids are to be those of the student.
        """
        data, config = self.data, self.config
        self.given = recbole_data.interactions(data.train, held, data.user_tokens)
        if len(self.given.users) == 0 or (get_model(self.kind).type == ModelType.SEQUENTIAL and len(data.fit) == 0):
            raise UserError(
                f"There is no training example that {config['teacher']} could learn from: lower the filters, or take a "
                "data set with more interactions of a user."
            )
        users, items = sorted(data.user_tokens), data.item_tokens
        if student_ids is not None:
            users, items = data.user_tokens, [items[new - 1] for new in student_ids[1:].tolist()]
        columns = recbole_data.side_columns(self.kind, self.own, self.load_col)
        self.files = recbole_data.side_files(columns, config)
        with recbole_data.written(self.given, (data.user_tokens, data.item_tokens), self.files, config) as folder:
            self.host_config = recbole_data.host_config(self.kind, self.own, config, self.load_col, folder)
            self.host_data = recbole_data.read(self.host_config, users, items)
        self._number()
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            self.host_data._aug_presets()
            self.host_data.inter_feat = self._interaction(data.fit).cpu()
        construct_transform(self.host_config)  # names columns that the model asks for, as RecBole's loaders do
        self.host = get_model(self.kind)(self.host_config, self.host_data).to(config["device"])
        self.to_logits = to_logits(self.host, traits_of(type(self.host))[0])
        self._form: tuple[bool, Tensor | None] | None = None

    def _number(self) -> None:
        """Canonical item ids and the student's user ids as ids of the model; and who and what it has seen."""
        host, data = self.host_data, self.data
        users = [0, *(host.token2id(host.uid_field, token) for token in data.user_tokens)]
        items = [0, *(host.token2id(host.iid_field, token) for token in data.item_tokens)]
        known_users, known = torch.zeros(len(users), dtype=torch.bool), torch.zeros(len(items), dtype=torch.bool)
        known_users[self.given.users] = True
        known[self.given.items] = True
        device = self.tau.device
        for name, ids in (("host_user", users), ("host_item", items), ("known_users", known_users), ("known", known)):
            self.register_buffer(name, torch.as_tensor(ids).to(device), persistent=False)

    @property
    def code_version(self) -> str:
        """Of this class and of the model."""
        return f"{self.kind} in RecBole {self.version}"

    @property
    def temperature(self) -> float:
        """Divides the scores in the soft targets; chosen on the holdout."""
        return float(self.tau)

    @property
    def reads_ids_alone(self) -> bool:
        """Whether users and items are all that it has rows for."""
        return not self.files

    def depends_on(self) -> dict[str, Any]:
        """The interactions, who had them, and the side files."""
        held = self.data.holdout
        return {
            "interactions": self.given.digest(self.data.user_tokens),
            "held_users": store.digest([[self.data.user_tokens[user - 1] for user in held.users.tolist()]]),
            "side_files": {suffix: store.file_digest(file) for suffix, file in self.files.items()},
            "load_col": self.host_config["load_col"],
            "minutes": self.config["kd_teacher_minutes"],
        }

    # Fitting --------------------------------------------------------------------------------------------------------

    def load_checkpoint(self, path: Path) -> None:
        """Take a checkpoint of RecBole's for the same data set as it is, with the settings that it was made with.

        Raises:
            UserError: unreadable file, another model or data set, other filters or split, or other sizes.
        """
        content = read(path, self.host_config, self.host, self.config)
        self.own |= own_settings(content["config"], self.own, {*host_properties(self.kind), "MAX_ITEM_LIST_LENGTH"})
        self.load_col = content["config"]["load_col"]
        self.config["MAX_ITEM_LIST_LENGTH"] = self.own["MAX_ITEM_LIST_LENGTH"]
        self._build(self.data.holdout.select(torch.zeros(0, dtype=torch.int64)), self.data.canonical)
        try:
            self.host.load_state_dict(content["state_dict"])
        except RuntimeError as error:
            raise UserError(
                f"{path} does not fit {self.config['teacher']} on this data set "
                f"({' '.join(str(error).split())[:200]}): name a checkpoint of the same data set, filters and settings."
            ) from error
        self.host.load_other_parameter(content.get("other_parameter"))
        self.loaded = path
        getLogger().info(
            f"{self.config['teacher']} is the model in {path}, which its own run has stopped by its validation items."
        )

    def go_on(self, new_items: Tensor, new_users: Tensor, keep: bool) -> None:
        """Without training it knows nothing of new items and users, so that it does not cover them."""
        clear_graph_cache(self.host)
        if keep:
            self.known[new_items], self.known_users[new_users] = False, False
            self.keeps = True

    def solve(self, data: "TeacherData") -> None:
        """Train the model with RecBole's trainer, unless it was loaded; then choose the temperature.

        Raises:
            NotFinite: its loss or weights became NaN or infinite.
        """
        with torch.enable_grad():
            self.holdout = self._train(data)
        self.host.eval()
        clear_graph_cache(self.host)
        for name, value in (self.host.other_parameter() or {}).items():
            if isinstance(value, Tensor) and value.layout == torch.strided and not name.startswith("restore_"):
                self.register_buffer(KEPT + name, value)
        self._form = None
        self.tau.fill_(self._calibrated(data))
        getLogger().info(
            f"{self.config['teacher']}: holdout {self.config['valid_metric']} {self.holdout:.4f}, temperature "
            f"{self.temperature:.4g}."
        )

    def _train(self, data: "TeacherData") -> float:
        """Train unless loaded; the score on the holdout."""
        config, name = self.host_config, self.config["teacher"]
        sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        fit = self._interaction(data.fit).cpu() if sequential else self.host_data.inter_feat
        train, valid = recbole_data.loaders(config, self.host_data, fit, self._interaction(data.holdout).cpu())
        loaded = self.keeps or getattr(self, "loaded", None) is not None
        with tempfile.TemporaryDirectory() as folder:
            trainer = quiet_trainer(host_trainer(config, type(self.host)), config, self.host, Path(folder))
            watch_loss(trainer, name)
            if not loaded and config["epochs"]:
                with overflow_explained(config, name), suppress(TimeIsUp):
                    callback = clock(trainer, name, self.config["kd_teacher_minutes"])
                    trainer.fit(train, valid, show_progress=config["show_progress"], callback_fn=callback)
                if not weights_are_finite(self.host):
                    raise NotFinite(weights_sentence(trainer, name))
            if valid is None:
                return 0.0
            trained = not loaded and bool(config["epochs"])
            result = trainer.evaluate(valid, load_best_model=trained)
        return float(result[config["valid_metric"].lower()])

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """The stored weights, with what the model keeps beside them."""
        for name, value in state_dict.items():
            if name.startswith(KEPT):
                self.register_buffer(name, value.to(self.tau.device))
                setattr(self.host, name.removeprefix(KEPT), getattr(self, name))
        found = super().load_state_dict(state_dict, strict=strict, assign=assign)
        clear_graph_cache(self.host)
        self._form = None
        return found

    def _calibrated(self, data: "TeacherData") -> float:
        examples = data.holdout if len(data.holdout) else data.fit
        usable = torch.nonzero(self._covers(examples) & self.covered_items()[examples.targets]).squeeze(1)
        examples = examples.select(usable[-max(100, min(_EXAMPLES, SCORES // self.n_items)) :])
        if len(examples) == 0:
            return 1.0
        scores = torch.cat([self._all_scores(part).cpu() for part in self._batches(examples)])
        scores[:, ~self.covered_items()] = -torch.inf
        item_seq, _ = examples.histories(torch.arange(len(examples)), int(examples.lengths.max()))
        targets = examples.targets
        scores = without_history(scores, item_seq, targets)
        return temperature_of(scores, targets)
