"""Any model of RecBole as a teacher, by its name in `kd_teachers`: LightGCN, SASRec, EASE, DeepFM, ...

RecBole's own trainer fits it to the training examples but a holdout, which decides when to stop. With a checkpoint of
RecBole's it is taken as it is. Ids are canonical, so that nothing that is learnt depends on validation or test items.

How it scores decides what is stored of it (`teacher_cache`): the product of two vectors and a bias of items, where the
first batch shows that `full_sort_predict` is that; the largest scores of each example otherwise. A model that scores
pairs alone scores all users x all items once, which is slow for large catalogues.
"""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
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
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.calibration import temperature_of
from recbole_prmkd.teachers.clock import TimeIsUp, clock
from recbole_prmkd.teachers.products import bias_of, first_product
from recbole_prmkd.teachers.recbole_checkpoint import own_settings, read

if TYPE_CHECKING:
    from recbole_prmkd.teachers.data import ExamplesDataset, TeacherData

_SCORES = 1 << 24  # scored at a time
_PAIRS = 1 << 16  # scored at a time, of models that score pairs
_SLOW = 20_000_000  # pairs
_EXAMPLES = 2000  # that the temperature is chosen on, at most
_KEPT = "kept_"  # prefix of what a model keeps beside its parameters


class RecBoleTeacher(Teacher):
    """A model of RecBole, its ids made canonical and its scores made logits.

    A history's "vector" is the user's or history's vector, with a 1 for the items' bias, or its scores of all items; 0
    where the model knows nothing of the user or of the history.
    """

    version = "1.0"
    item_text = "nothing"
    learns = False  # by itself: RecBole trains the model inside
    reads_examples = True
    scores_all_items = True  # unless its scores prove to be products
    cosine = False
    side_information = ()
    tau: Tensor

    def __init__(self, config: Config, dataset: "ExamplesDataset") -> None:
        super().__init__(config, dataset)
        assert dataset.source is not None, "a model of RecBole is fitted to the data of a run"
        self.config, self.data, self.kind = config, dataset.source, config["teacher_kind"]
        self.register_buffer("tau", torch.ones((), dtype=torch.float64))
        self.holdout = 0.0
        self.own = {key: config[key] for key in teacher_settings(self.kind, {})}
        self.files = recbole_data.side_files(self.kind, self.own, config["teacher"], config)
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
        with recbole_data.written(self.given, (data.user_tokens, data.item_tokens), self.files, config) as folder:
            self.host_config = recbole_data.host_config(self.kind, self.own, config, folder)
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

    def depends_on(self) -> dict[str, Any]:
        """The interactions, who had them, and the side files."""
        held = self.data.holdout
        return {
            "interactions": self.given.digest(self.data.user_tokens),
            "held_users": store.digest([[self.data.user_tokens[user - 1] for user in held.users.tolist()]]),
            "side_files": {suffix: store.file_digest(file) for suffix, file in self.files.items()},
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
                self.register_buffer(_KEPT + name, value)
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
        loaded = getattr(self, "loaded", None) is not None
        with tempfile.TemporaryDirectory() as folder:
            trainer = quiet_trainer(host_trainer(config, type(self.host)), config, self.host, Path(folder))
            watch_loss(trainer, name)
            if not loaded and config["epochs"]:
                with overflow_explained(config, name), suppress(TimeIsUp):
                    callback = clock(name, self.config["kd_teacher_minutes"])
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
            if name.startswith(_KEPT):
                self.register_buffer(name, value.to(self.tau.device))
                setattr(self.host, name.removeprefix(_KEPT), getattr(self, name))
        found = super().load_state_dict(state_dict, strict=strict, assign=assign)
        clear_graph_cache(self.host)
        self._form = None
        return found

    def _calibrated(self, data: "TeacherData") -> float:
        examples = data.holdout if len(data.holdout) else data.fit
        usable = torch.nonzero(self._covers(examples) & self.covered_items()[examples.targets]).squeeze(1)
        examples = examples.select(usable[-max(100, min(_EXAMPLES, _SCORES // self.n_items)) :])
        if len(examples) == 0:
            return 1.0
        scores = torch.cat([self._all_scores(part).cpu() for part in self._batches(examples)])
        numbers, targets = torch.arange(len(examples)), examples.targets
        item_seq, _ = examples.histories(numbers, int(examples.lengths.max()))
        own = scores[numbers, targets]
        scores[:, ~self.covered_items()] = -torch.inf
        scores = scores.scatter(1, item_seq, -torch.inf)
        scores[numbers, targets] = own
        return temperature_of(scores, targets)

    # Scoring --------------------------------------------------------------------------------------------------------

    @property
    def in_pairs(self) -> bool:
        """Whether the model scores pairs alone."""
        if traits_of(type(self.host))[0].in_pairs or self.host_config["MODEL_TYPE"] == ModelType.CONTEXT:
            return True
        return type(self.host).full_sort_predict.__qualname__.startswith("AbstractRecommender.")

    @torch.no_grad()
    def settle(self) -> None:
        """Find out whether its scores are products of two vectors and a bias; `scores_all_items` says so then."""
        if self._form is not None:
            return
        self._form = (False, None)
        if self.to_logits is None and not self.in_pairs:
            examples = self.data.fit if len(self.data.fit) else self.data.train
            index = torch.linspace(0, len(examples) - 1, min(8, len(examples))).long()
            self._form = bias_of(self.host, self._interaction(examples.select(index)), self.host_data.item_num)
        self.scores_all_items = not self._form[0]

    def covered_items(self) -> Tensor:
        """Items that were in training, [n_items]."""
        return self.known.cpu()

    @torch.no_grad()
    def encode_items(self) -> Tensor:
        """Item vectors with their bias, [n_items, D], 0 where not covered; or which items are covered, [n_items, 1]."""
        self.settle()
        assert self._form is not None
        if self.scores_all_items:
            return self.known[:, None].float()
        examples = self.data.fit if len(self.data.fit) else self.data.train
        _, table = first_product(
            self.host, self._interaction(examples.select(torch.arange(1))), self.host_data.item_num
        )
        columns = [table] if self._form[1] is None else [table, self._form[1][:, None]]
        return torch.cat(columns, dim=1)[self.host_item].float() * self.known[:, None]

    @torch.no_grad()
    def encode_batch(self, interaction: Interaction, items: Tensor) -> Tensor:
        """The batch's vectors [B, D], or its scores of all items [B, n_items]; 0 where not covered."""
        self.settle()
        assert self._form is not None
        covered = self.known_users[interaction[self.USER_ID]]  # [B]
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            covered = interaction[self.ITEM_SEQ_LEN] > 0
        batch = self._host_batch(interaction)
        if self.scores_all_items:
            return self._scored(batch).masked_fill(~covered[:, None], 0)
        users, _ = first_product(self.host, batch, self.host_data.item_num)
        users = users.reshape(len(batch), -1).float()
        if self._form[1] is not None:
            users = torch.cat([users, users.new_ones(len(users), 1)], dim=1)
        return users.masked_fill(~covered[:, None], 0)

    def scores(self, histories: Tensor, items: Tensor) -> Tensor:
        """Logits, [B, n_items]; an item that is not covered comes after all others."""
        raw = histories if self.scores_all_items else histories @ items.T
        lowest = raw[:, self.known].amin(1, keepdim=True)
        return torch.where(self.known, raw, lowest)

    def predict(self, interaction: Interaction) -> Tensor:
        """The score of the example's own item, [B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None]).squeeze(1)

    @torch.no_grad()
    def training_scores(self, data: "TeacherData") -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers [B] of training examples and their scores [B, n_items]; NaN where not covered.

        A model that is not sequential scores each user once.
        """
        index = torch.nonzero(self._covers(data.train)).squeeze(1)
        index = index[torch.argsort(data.train.users[index], stable=True)]
        sequential = self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        distinct = len(index) if sequential else len(torch.unique(data.train.users[index]))
        if self.in_pairs and (pairs := distinct * (self.n_items - 1)) > _SLOW:
            getLogger().warning(
                f"{self.config['teacher']} scores pairs alone, so {pairs / 1e6:.0f} million pairs of "
                f"{'example' if sequential else 'user'} and item are scored now: a model with vectors is faster."
            )
        unknown = ~self.known.to(self.tau.device)
        for part in index.split(max(1, _SCORES // self.n_items)):
            users, row = torch.unique_consecutive(data.train.users[part], return_inverse=True)
            first = torch.searchsorted(row, torch.arange(len(users)))
            asked = part if sequential else part[first]
            scores = torch.cat([self._all_scores(each) for each in self._batches(data.train.select(asked))])
            scores = scores.masked_fill(unknown, torch.nan)
            yield part, scores if sequential else scores[row.to(scores.device)]

    def _covers(self, examples: Examples) -> Tensor:
        """Which examples it can score, [N]."""
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            return examples.lengths > 0
        return self.known_users.cpu()[examples.users]

    def _batches(self, examples: Examples) -> Iterator[Examples]:
        size = max(1, min(self.config["eval_batch_size"], _SCORES // self.n_items))
        for index in torch.arange(len(examples)).split(size):
            yield examples.select(index)

    def _all_scores(self, examples: Examples) -> Tensor:
        """Logits of canonical items, [B, n_items]."""
        return self._scored(self._interaction(examples))

    @torch.no_grad()
    def _scored(self, batch: Interaction) -> Tensor:
        """The same of a batch in the model's ids."""
        scores = self._pairs(batch) if self.in_pairs else self.host.full_sort_predict(batch).view(len(batch), -1)
        scores = scores[:, : self.host_data.item_num].float()
        return (scores if self.to_logits is None else self.to_logits(scores))[:, self.host_item]

    def _pairs(self, batch: Interaction) -> Tensor:
        """One prediction for each example of the batch and each item, [B, items of the model]."""
        number, width = len(batch), self.host_data.item_num
        predict = self.host.forward if self.host_config["MODEL_TYPE"] == ModelType.CONTEXT else self.host.predict
        scores = []
        for index in torch.arange(number * width, device=self.tau.device).split(_PAIRS):
            pairs = {name: batch[name][index // width] for name in batch.columns}
            pairs[self.host_data.iid_field] = index % width
            joined = self.host_data.join(Interaction(pairs).cpu()).to(self.tau.device)
            scores.append(predict(joined).view(-1))
        return torch.cat(scores).view(number, width)

    def _interaction(self, examples: Examples) -> Interaction:
        """These examples as a batch in the model's ids."""
        columns = {self.USER_ID: examples.users, self.ITEM_ID: examples.targets}
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            numbers, max_length = torch.arange(len(examples)), self.own["MAX_ITEM_LIST_LENGTH"]
            columns[self.ITEM_SEQ], columns[self.ITEM_SEQ_LEN] = examples.histories(numbers, max_length)
        return self._host_batch(Interaction(columns).to(self.tau.device))

    def _host_batch(self, interaction: Interaction) -> Interaction:
        """A batch of a teacher in the model's ids: canonical items, the student's users."""
        columns = {
            self.USER_ID: self.host_user[interaction[self.USER_ID]],
            self.ITEM_ID: self.host_item[interaction[self.ITEM_ID]],
        }
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            item_seq = self.host_item[interaction[self.ITEM_SEQ]]  # [B, L]
            missing = self.own["MAX_ITEM_LIST_LENGTH"] - item_seq.shape[1]  # some models read that width alone
            columns[self.ITEM_SEQ] = torch.nn.functional.pad(item_seq, (0, missing))
            columns[self.ITEM_SEQ_LEN] = interaction[self.ITEM_SEQ_LEN].clamp(min=1)  # 0: not covered
        return Interaction(columns)
