"""Pre-train a teacher on one or several RecBole data sets at once:

data sets -> their training splits, joined -> text and images of each -> batches of mixed domains -> weights and card

Only training examples are used, so that a data set may be pre-trained on and then be the target. Early stopping follows
the in-batch accuracy on held-out training examples (at most 5 % of them).
"""

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.utils import init_seed

from recbole_prmkd.data.split import Split, load_split
from recbole_prmkd.data.text import item_file, prepare_item_text, text_fields
from recbole_prmkd.errors import NotFinite, UserError
from recbole_prmkd.recbole_host.boundary import recbole_errors
from recbole_prmkd.recbole_host.checks import check_pretraining
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.finite import overflow_explained, weights_are_finite, weights_sentence
from recbole_prmkd.recbole_host.keys import pretraining_properties
from recbole_prmkd.recbole_host.run_files import quiet_trainer, run_logging
from recbole_prmkd.results.provenance import package_versions
from recbole_prmkd.results.run_folder import output_folder
from recbole_prmkd.storage import store
from recbole_prmkd.storage.disk import is_read_only
from recbole_prmkd.students.windows import WindowLoader
from recbole_prmkd.teachers import TEACHERS, Teacher, pretrained
from recbole_prmkd.teachers.causal import CausalTeacher
from recbole_prmkd.teachers.data import JoinedData, TeacherData, joined_data, second_half, teacher_data
from recbole_prmkd.teachers.fit import given_tables, learnt_weights
from recbole_prmkd.teachers.pretrain_trainer import PretrainTrainer

_VALIDATION_BATCH = 64  # examples of a validation batch that is not made of windows


def pretrain(
    model: str,
    datasets: Sequence[str],
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Pre-train the teacher on these data sets; the files go to `kd_output_dir`, or else to `kd_teacher_dir`.

    Like `run_recbole_prmkd` this reads the command line. What is there already and was made from the same data and
    settings is reused.

    Returns:
        `checkpoint` (path of the weights) and `card`.
    Raises:
        UserError: bad input, in one sentence; nothing was written.
    """
    learning = [name for name, teacher in TEACHERS.items() if teacher.learns]
    if model not in learning:
        raise UserError(f"Only a teacher can be pre-trained ({', '.join(learning)}), not {model}.")
    if len(set(datasets)) != len(datasets):
        raise UserError(f"--datasets names a data set twice: {', '.join(datasets)}; name each once.")
    stage = {"train_stage": "pretrain"}
    configs = [load_config(model, name, config_file_list, {**(config_dict or {}), **stage}) for name in datasets]
    config = configs[0]
    output = Path(config["kd_output_dir"] or config["kd_teacher_dir"])
    for each in configs:
        check_pretraining(each, output)
    file = pretrained.weights_file(output, model)
    own = (f"{model}-pretraining",)
    with ExitStack() as stack:
        place = output
        if file.is_file() and is_read_only(output) and not config["kd_rebuild"]:  # it can be reused, not replaced
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = output_folder(place, f"unfinished-{model}", [file.name, f"{model}.json"], own)
        folder = stack.enter_context(work)
        logs = folder / own[0]
        logs.mkdir()
        with run_logging(config, logs):
            card, reused = _pretrain(model, configs, file, folder, logs)
        if reused:  # the log of the run that made it stays
            shutil.rmtree(logs)
    return {"checkpoint": str(file), "card": card}


def _pretrain(
    model: str, configs: Sequence[Config], file: Path, folder: Path, logs: Path
) -> tuple[dict[str, Any], bool]:
    """The card, and whether the weights were there already."""
    config = configs[0]
    init_seed(config["seed"], config["reproducibility"])
    getLogger().info(config)
    splits = [load_split(each) for each in configs]
    parts = [teacher_data(split, config["seed"]) for split in splits]
    data = joined_data(configs, parts)
    for each, part in zip(configs, parts, strict=True):
        prepare_item_text(each, part.item_tokens, vectors=TEACHERS[model].item_text == "vectors")
    init_seed(config["seed"], config["reproducibility"])
    teacher = TEACHERS[model](config, data.dataset(config, data.fit)).to(config["device"])
    made_from = {
        "datasets": [_described(*one) for one in zip(configs, splits, parts, strict=True)],
        "rows": {"fit": data.fit.digest(), "holdout": data.holdout.digest()},
        **_settings(model, config),
        "side_information": store.digest(tensor for _, tensor in sorted(given_tables(teacher).items())),
    }
    old = _stored(file, made_from, bool(config["kd_rebuild"]))
    if old is not None:
        return old, True
    with recbole_errors(f"pre-train {model} with these settings", config):
        trained = _train(teacher, config, data, logs)
    card = {**made_from, **trained, "versions": package_versions()}
    pretrained.write(folder, model, pretraining_weights(teacher), card)
    getLogger().info(f"Pre-trained {model}: {file}, in-batch accuracy {trained['in_batch_accuracy']:.4f}.")
    return {**card, "teacher": model}, False


def _train(teacher: Teacher, config: Config, data: JoinedData, logs: Path) -> dict[str, Any]:
    """Train, go back to the best epoch's weights; returns what the card says of it."""
    getLogger().info(teacher)
    held_out = data.dataset(config, data.holdout)
    train: Any
    if isinstance(teacher, CausalTeacher):
        dataset = data.dataset(config, data.fit)
        train = WindowLoader(config, dataset, data.fit)
        valid = list(WindowLoader(config, held_out, data.holdout))
    else:
        dataset = data.dataset(config, second_half(data.fit) if config["second_half"] else data.fit)
        train = TrainDataLoader(config, dataset, None, shuffle=True)
        numbers = torch.arange(len(data.holdout))[: config["max_validation_rows"]]
        valid = [held_out[index] for index in numbers.split(_VALIDATION_BATCH)]
    trainer = quiet_trainer(PretrainTrainer, config, teacher, logs)
    before = trainer.in_batch_accuracy(valid)
    getLogger().info(
        f"{config['model']}: {len(dataset)} examples of {len(data.domains)} data sets, in-batch accuracy before "
        f"training {before:.4f} on {sum(len(batch[config['ITEM_ID_FIELD']]) for batch in valid)} held-out examples."
    )
    started = time.time()
    with overflow_explained(config):
        trainer.fit(train, valid, show_progress=config["show_progress"])
    seconds = time.time() - started
    if Path(trainer.saved_model_file).is_file():  # not after 0 epochs
        trainer.resume_checkpoint(trainer.saved_model_file)
        Path(trainer.saved_model_file).unlink()
    if not weights_are_finite(teacher):
        raise NotFinite(weights_sentence(trainer))
    return {
        "seconds": seconds,
        "epochs": len(trainer.train_loss_dict),
        "losses": [float(loss) for loss in trainer.train_loss_dict.values()],
        "in_batch_accuracy": trainer.in_batch_accuracy(valid),
        "in_batch_accuracy_before": before,
        "parameters": sum(tensor.numel() for tensor in pretraining_weights(teacher).values()),
        "device": str(config["device"]),
    }


def pretraining_weights(teacher: Teacher) -> dict[str, torch.Tensor]:
    """What pre-training learnt: no table whose rows are items."""
    return {name: tensor for name, tensor in learnt_weights(teacher).items() if name.split(".")[0] != "item_embedding"}


def _described(config: Config, split: Split, part: TeacherData) -> dict[str, Any]:
    """One data set on the card."""
    return {
        "name": config["dataset"],
        "users": len(split.user_tokens),
        "items": len(split.item_tokens),
        "rows": len(part.fit),
        "item_tokens": store.digest(part.item_tokens),
        "text_fields": text_fields(config),
        "text_file": store.file_digest(item_file(config)),
        "images": config["kd_item_images"],
    }


def _settings(model: str, config: Config) -> dict[str, Any]:
    keys = [*sorted(pretraining_properties(model)), "kd_window_context", "kd_text_max_tokens"]
    return {
        "text_encoder": pretrained.text_encoder(config),
        "settings": {key: config[key] for key in keys},
        "seed": config["seed"],
    }


def _stored(file: Path, made_from: Mapping[str, Any], rebuild: bool) -> dict[str, Any] | None:
    """The card of an equal teacher that is there already.

    Raises:
        UserError: another one is there.
    """
    if rebuild or not file.is_file():
        return None
    card = pretrained.read_card(file)
    wanted = store.as_json(made_from)
    if card and card["text_encoder"]["digest"] == wanted["text_encoder"]["digest"]:
        wanted["text_encoder"] = card["text_encoder"]  # whatever it is called now
    differing = sorted(key for key in wanted if not card or card.get(key) != wanted[key])
    if card and not differing:
        getLogger().info(f"{file} was made from the same data and settings: it is reused.")
        return card
    raise UserError(
        f"{file} was made from other data or settings ({', '.join(differing)}): name another folder with "
        "--kd_output_dir, or replace it with --kd_rebuild=True."
    )
