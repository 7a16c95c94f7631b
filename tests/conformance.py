"""Every model of RecBole as a student: one distilled epoch with two synthetic teachers, and what must hold of it.

python -m tests.conformance [model ...]     prints the table of docs/students.md; without names, of all models
python -m tests.conformance kd              prints the table of docs/ways.md: every KD method with three students
"""

import math
import pkgutil
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import recbole.model
import torch
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer

from recbole_prmkd import preparation, run_recbole_prmkd
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import key_table
from recbole_prmkd.students.adapter import clear_graph_cache
from recbole_prmkd.teacher_cache.scores import CachedVectors, TeacherCache

FAMILIES = ("general", "sequential", "context_aware", "knowledge_aware", "exlib")
USERS, ITEMS, ENTITIES = 60, 40, 55
# What a model needs beside the defaults on this data, as its user would set it.
SMALL = {
    "epochs": 1,
    "train_batch_size": 256,
    "eval_batch_size": 512,
    "MAX_ITEM_LIST_LENGTH": 8,
    "show_progress": False,
    "embedding_size": 16,
    "hidden_size": 16,
    "kd_weight": 1.0,
    "kd_max_rows": 64,  # fewer than a batch holds, as on real data
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "user": ["user_id", "age", "gender"],
        "item": ["item_id", "class", "year"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    },
}
ENTITY_VECTORS = {
    "additional_feat_suffix": ["ent", "rel"],
    "alias_of_entity_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "load_col": {**SMALL["load_col"], "ent": ["ent_id", "ent_emb"], "rel": ["rel_id", "rel_emb"]},
}
# Stages that come first, without distillation; the last one's checkpoint is pre_model_path.
STAGES = {"S3Rec": ["pretrain"], "RaCT": ["actor_pretrain", "critic_pretrain"]}
OWN = {
    "S3Rec": {"train_stage": "finetune"},
    "KD_DAGFM": {"phase": "teacher_training"},
    "KSR": {"kg_embedding_size": 16, "embedding_size": 16, **ENTITY_VECTORS},
    "GRU4RecKG": {**ENTITY_VECTORS},
    "ConvNCF": {"embedding_size": 64},
    "RaCT": {"train_stage": "finetune", "metrics_k": 10},
    "DSSM": {"load_col": {**SMALL["load_col"], "user": ["user_id", "gender"], "item": ["item_id", "class"]}},
    "SHAN": {"short_item_length": 2},
    "NCL": {"num_clusters": 4},
    "HRM": {"high_order": 1},
}


# Students that every KD method is tried with; each scores in another way.
STUDENTS = ("SASRec", "LightGCN", "DeepFM")
KD_METHODS = [kd for kd in key_table()["kd"]["choices"] if kd not in ("none", "auto", "warm_start", "ensemble")]


def model_names() -> list[tuple[str, str]]:
    """(family, model) of all models in RecBole's folders."""
    found = []
    for family in FAMILIES:
        folder = Path(recbole.model.__path__[0]) / f"{family}_recommender"
        for module in pkgutil.iter_modules([str(folder)]):
            classes = re.findall(r"^class (\w+)", (folder / f"{module.name}.py").read_text(), re.MULTILINE)
            found += [(family.split("_")[0], name) for name in classes if name.lower() == module.name]
    return sorted(found)


def write_data(folder: Path) -> Path:
    """A data set with every kind of file that RecBole's models ask for; item i tends to be followed by i + 1."""
    rng = np.random.default_rng(0)
    data = folder / "small"
    data.mkdir(parents=True)

    def write(suffix: str, header: str, lines: list[str]) -> None:
        (data / f"small.{suffix}").write_text("\n".join([header.replace(" ", "\t"), *lines]) + "\n")

    sequences = [
        (rng.integers(ITEMS) + np.arange(rng.integers(6, 14)) + rng.integers(0, 2)) % ITEMS for _ in range(USERS)
    ]
    write(
        "inter",
        "user_id:token item_id:token timestamp:float",
        [f"u{u}\ti{i}\t{step}" for u, items in enumerate(sequences) for step, i in enumerate(items)],
    )
    write("user", "user_id:token age:float gender:token", [f"u{u}\t{20 + u % 30}\t{'fm'[u % 2]}" for u in range(USERS)])
    write(
        "item",
        "item_id:token class:token_seq year:float",
        [f"i{i}\tc{i % 5} c{i % 3}\t{1990 + i}" for i in range(ITEMS)],
    )
    write("link", "item_id:token entity_id:token", [f"i{i}\te{i}" for i in range(ITEMS)])
    triples = [(i, f"r{r}", ITEMS + (i * (r + 1)) % (ENTITIES - ITEMS)) for i in range(ITEMS) for r in range(3)]
    vector = " ".join(["0.1"] * 15)
    write("ent", "ent_id:token ent_emb:float_seq", [f"e{e}\t{e / ENTITIES} {vector}" for e in range(ENTITIES)])
    write("rel", "rel_id:token rel_emb:float_seq", [f"r{r}\t{r / 3} {vector}" for r in range(3)])
    write("kg", "head_id:token relation_id:token tail_id:token", [f"e{h}\t{r}\te{t}" for h, r, t in triples])
    return folder


def synthetic(split, device) -> TeacherCache:
    """Two teachers of random vectors, of 8 and 12 numbers."""
    rng = np.random.default_rng(1)

    def unit(n, width):
        table = rng.normal(size=(n, width))
        return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float16)

    n_items = len(split.item_tokens) + 1
    teachers = [
        CachedVectors(
            f"T{width}", 0.1, 0.05, torch.from_numpy(unit(n_items, width)).to(device), unit(len(split.train), width)
        )
        for width in (8, 12)
    ]
    return TeacherCache(teachers, torch.arange(n_items), device)


def conform(model: str, data: Path, folder: Path, kd: str = "mean") -> tuple[str, str]:
    """The scoring path, and "ok" or the refusal.

    Raises:
        AssertionError: something does not hold of a model that was not refused.
    """
    gradients, paths = [], []

    def watched(objective: Objective, interaction):
        loss = call(objective, interaction)
        if not gradients:
            weights = [p for p in objective.student.model.parameters() if p.requires_grad]
            parts = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            gradients.append(max((float(part.abs().max()) for part in parts if part is not None), default=0.0))
            paths.append(objective.student.family.name)
        return loss

    call = Objective.__call__
    settings = {**SMALL, **OWN.get(model, {}), "data_path": str(data), "kd": kd, "kd_output_dir": str(folder)}
    for stage in STAGES.get(model, []):
        first = {"kd": "none", "train_stage": stage, "pretrain_epochs": 1, "save_step": 1}
        output = {"kd_output_dir": str(folder / stage)}
        result = run_recbole_prmkd(model, "small", config_dict={**settings, **first, **output})["result"]
        settings["pre_model_path"] = str(folder / stage / result["student"]["checkpoint"])
    with (
        mock.patch.object(Objective, "__call__", watched),
        mock.patch.object(
            preparation, "prepare_teachers", lambda config, split, steps: ([], [], synthetic(split, config["device"]))
        ),
    ):
        try:
            returned = run_recbole_prmkd(model, "small", config_dict=settings)
        except UserError as error:
            return "-", str(error)
    (epoch,) = returned["result"]["distillation"]
    assert math.isfinite(epoch["kd_loss"]) and epoch["kd_loss"] >= 0, epoch
    assert gradients[0] > 0, "kd_loss has no gradient"
    # What stock RecBole makes of the checkpoint: the same weights by name, the same metrics, no stale cache.
    file = folder / returned["result"]["student"]["checkpoint"]
    with mock.patch.dict("os.environ", {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}):
        config, net, _, _, _, test_data = load_data_and_model(str(file))
    config["checkpoint_dir"] = str(folder)
    kept = torch.load(file, weights_only=False)["state_dict"]
    assert list(kept) == list(type(net)(config, test_data._dataset).state_dict()), (
        "other weights than the stock model's"
    )
    batch = next(iter(test_data))[0].to(config["device"])
    stored = ranking_of(net, batch)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, net)
    metrics = [dict(trainer.evaluate(test_data, load_best_model=False, show_progress=False)) for _ in range(2)]
    fresh = [ranking_of(net, batch, from_cache=False) for _ in range(2)]
    if metrics[0] != metrics[1]:
        return paths[0], "ok; its metrics differ from one evaluation to the next"
    if fresh[0] is None or torch.equal(*fresh):  # NGCF's graph pass has dropout even when it is evaluated
        torch.testing.assert_close(stored, fresh[0], rtol=1e-5, atol=1e-7, msg="the checkpoint holds a stale cache")
    assert metrics[0] == dict(returned["test_result"]), f"{metrics[0]} is not {returned['test_result']}"
    return paths[0], "ok"


@torch.no_grad()
def ranking_of(model, batch, from_cache: bool = True) -> torch.Tensor | None:
    """The scores of all items, also from the graph cache that the model may hold; None where it scores pairs alone."""
    model.eval()
    if not from_cache:
        clear_graph_cache(model)
    try:
        return model.full_sort_predict(batch)
    except NotImplementedError:
        return None


def fails_alone(model: str, data: Path, folder: Path) -> bool:
    """Whether RecBole itself cannot train the model on this data."""
    settings = {**SMALL, **OWN.get(model, {}), "data_path": str(data), "kd": "none", "kd_protocol": "ranking"}
    try:
        run_recbole_prmkd(model, "small", config_dict={**settings, "kd_output_dir": str(folder)})
    except Exception:  # whatever it is
        return True
    return False


def print_methods(data: Path, folder: Path) -> None:
    """A line for each KD method, a column for each student: ok, or the sentence that refuses it."""
    print(f"| `kd` | {' | '.join(STUDENTS)} |\n|---|{'---|' * len(STUDENTS)}")
    for kd in KD_METHODS:
        outcomes = []
        for model in STUDENTS:
            try:
                outcomes.append(conform(model, data, folder / kd / model, kd)[1])
            except Exception as error:  # the table shows whatever happened
                outcomes.append(f"FAILS: {type(error).__name__}: {error}")
        print(f"| `{kd}` | {' | '.join(' '.join(outcome.split())[:200] for outcome in outcomes)} |", flush=True)


def main() -> None:
    """Print the table, a line for each model."""
    wanted = sys.argv[1:]
    sys.argv = sys.argv[:1]  # RecBole reads the rest as settings
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data")
        if wanted == ["kd"]:
            print_methods(data, Path(folder))
            return
        print("| kind | model | scores come from | result |\n|---|---|---|---|")
        for family, model in model_names():
            if wanted and model not in wanted:
                continue
            try:
                path, outcome = conform(model, data, Path(folder) / model)
            except Exception as error:  # the table shows whatever happened
                alone = fails_alone(model, data, Path(folder) / f"{model}-alone")
                path, outcome = "-", "fails without distillation too" if alone else "FAILS"
                outcome = f"{outcome}: {type(error).__name__}: {error}"
            print(f"| {family} | {model} | {path} | {' '.join(outcome.split())[:300]} |", flush=True)


if __name__ == "__main__":
    main()
